"""Fill a flow cache before training."""

import gc
from collections.abc import Sized
from typing import Any, Protocol

import cv2
from torch.utils.data import DataLoader, Dataset

from stcl.errors import SettingError, StclError
from stcl.files.disks import explain_full_memory
from stcl.flow.cache import CachedFlow
from stcl.terminal import progress_bar


class Clips(Sized, Protocol):
    """A data set of clips that asks ``flow`` for the flow of every clip it loads."""

    flow: Any

    def __getitem__(self, item: int) -> object:
        """Load one clip."""
        ...


def precompute(clips: Clips, workers: int = 0, progress: bool = True) -> int:
    """Load every clip once, so that its flows come to lie in the cache.

    Args:
        clips: a ``ClipDataset`` whose ``flow`` is a :class:`CachedFlow`.
        workers: processes; 0 computes in this one.
        progress: show a bar.

    Returns:
        Number of files that were written.
    """
    if not isinstance(clips.flow, CachedFlow):
        raise SettingError("Flow can be precomputed only for clips with a flow cache. Give the flow a cache folder.")
    written = 0
    loader: DataLoader[Any] = DataLoader(
        _Touch(clips), batch_size=None, num_workers=workers, worker_init_fn=_single_threaded
    )
    with progress_bar(not progress, title="flow -> {task.description}") as bar, explain_full_memory():
        task = bar.add_task(str(clips.flow.folder), total=len(clips))
        for outcome in loader:
            if isinstance(outcome, StclError):
                raise outcome
            written += outcome
            bar.advance(task)
    return written


class _Touch(Dataset[Any]):
    """Loads clips and hands back how many files that wrote, or the error as a value (a traceback would bury it)."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: int) -> StclError | int:
        before = self.clips.flow.written
        try:
            self.clips[item]
        except StclError as error:
            return error
        return int(self.clips.flow.written - before)


def _single_threaded(worker: int) -> None:
    gc.freeze()  # a decoder of the parent that is freed here would wait for threads that only the parent has
    cv2.setNumThreads(0)
