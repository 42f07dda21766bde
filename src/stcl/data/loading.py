"""Loaders: an endless, seeded one whose position is a number, and one that passes once in order."""

import atexit
import gc
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from stcl.data.clips import ClipDataset
from stcl.errors import DataError, SettingError
from stcl.files.disks import explain_full_memory
from stcl.terminal import counted
from stcl.types import VideoClip, stack_clips


class ClipSampler(Sampler[list[int]]):
    """Endless batches of indices; batch k depends on ``(seed, k)`` only, so a run resumes at any step.

    The stream is one permutation of the data set after another (a batch may end one and begin the next, and a data
    set smaller than a batch fills it by wrapping around); batch k is its positions ``k B .. (k + 1) B - 1``. Of these,
    process r of W gives the r-th part, so that all processes together give the batch that one would.

    Args:
        length: number of clips.
        batch_size: B, of all processes together.
        seed: of the permutations, together with the epoch's number.
        start_step: k of the first batch.
        rank: r, number of this process.
        world: W, number of processes.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, start_step: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if length < 1 or batch_size < 1 or seed < 0 or start_step < 0:
            raise SettingError(
                f"A clip sampler needs length and batch size of at least 1, seed and start step of at least 0; "
                f"found length={length}, batch_size={batch_size}, seed={seed}, start_step={start_step}."
            )
        self.share = process_share(batch_size, world)
        self.length, self.batch_size, self.seed, self.start_step = length, batch_size, seed, start_step
        self.rank = rank
        self._permutation = (-1, np.empty(0, np.int64))  # epoch and its order

    def batch(self, step: int) -> list[int]:
        """This process's indices of batch ``step``."""
        first = step * self.batch_size + self.rank * self.share
        return [self._index(position) for position in range(first, first + self.share)]

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            yield self.batch(step)
            step += 1

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, self.length)
        if self._permutation[0] != epoch:
            self._permutation = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.length)
        return int(self._permutation[1][place])


class RareClassSampler(ClipSampler):
    """Rare-class sampling (DAFormer; Hoyer et al. 2022, arXiv 2111.14887): clips with rare classes come more often.

    For each place of a batch a class is drawn with P(c) ~ exp((1 - f_c) / T), f_c its share of the labelled pixels, and
    then one of the clips that show it. Place p depends on (seed, p) only.

    Args:
        pixels: of each class in each clip's frame t, ``(N, C)``.
        temperature: T; the smaller, the more the rarest classes prevail (published: 0.01).
        minimum_pixels: a clip with fewer pixels of a class does not show it.
    """

    def __init__(
        self, pixels: NDArray[np.int64], temperature: float, *args: Any, minimum_pixels: int = 16, **kwargs: Any
    ) -> None:
        super().__init__(len(pixels), *args, **kwargs)
        if temperature <= 0:
            raise SettingError(f"The temperature of rare-class sampling is a number above 0, not {temperature}.")
        shows = pixels >= minimum_pixels
        share = pixels.sum(0) / max(1, pixels.sum())
        score = np.where(shows.any(0), (1 - share) / temperature, -np.inf)
        if not np.isfinite(score).any():
            raise SettingError(
                f"Rare-class sampling finds no class of at least {minimum_pixels} pixels in any source label. Are the "
                "labels those of this label space?"
            )
        weight = np.exp(score - score.max())
        self.chance = weight / weight.sum()
        self.clips = [np.flatnonzero(column) for column in shows.T]

    def _index(self, position: int) -> int:
        random = np.random.default_rng([self.seed, position])
        return int(random.choice(self.clips[random.choice(len(self.chance), p=self.chance)]))


def class_pixels(dataset: ClipDataset, quiet: bool = True) -> NDArray[np.int64]:
    """Pixels of each class in the label of every clip's frame t, at the clips' size: ``(N, C)``.

    Reads each label once, several at a time, with a progress bar unless ``quiet``.
    """

    def count(item: int) -> NDArray[np.int64]:
        return np.bincount(dataset.label(item).ravel(), minlength=256)[: len(dataset.space)]

    with ThreadPoolExecutor() as pool:
        rows = pool.map(count, range(len(dataset)))
        return np.stack([*counted(rows, "classes of the source", len(dataset), quiet)])


def process_share(batch_size: int, world: int) -> int:
    """Clips of a batch for each of ``world`` processes."""
    if batch_size % world:
        raise SettingError(
            f"training.batch_size {batch_size} cannot be split over {world} devices: it counts the clips of a step on "
            f"all devices together. Make it a multiple of {world}."
        )
    return batch_size // world


class ClipLoader(DataLoader[VideoClip]):
    """A loader of clips that passes a :class:`DataError` of a worker on as it is, without a worker's traceback."""

    def __iter__(self) -> Iterator[VideoClip]:  # type: ignore[override]
        with explain_full_memory():
            for batch in super().__iter__():
                if isinstance(batch, DataError):
                    raise batch
                yield batch


def make_loader(
    dataset: ClipDataset,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
    rank: int = 0,
    world: int = 1,
    rare: tuple[NDArray[np.int64], float] | None = None,
) -> ClipLoader:
    """Endless loader of shuffled batches; each of the workers prepares two in advance.

    Their order is that of :class:`ClipSampler`, or, with pixels and temperature ``rare``, of :class:`RareClassSampler`.
    """
    place = (batch_size, seed, start_step, rank, world)
    sampler = ClipSampler(len(dataset), *place) if rare is None else RareClassSampler(*rare, *place)
    return ClipLoader(
        _Guarded(dataset),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=start_worker,
    )


def make_eval_loader(
    dataset: ClipDataset,
    batch_size: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    share: Sequence[int] | None = None,
) -> ClipLoader:
    """Loader of every clip (or those at the indices ``share``) once, in order; the last batch may be smaller."""
    return ClipLoader(
        _Guarded(dataset),
        batch_size=batch_size,
        sampler=range(len(dataset)) if share is None else share,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=start_worker,
    )


class _Guarded(Dataset[Any]):
    """Hands a DataError over as a value: torch would bury its one sentence under a worker's traceback."""

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int) -> VideoClip | DataError:
        try:
            return self.dataset[item]
        except DataError as error:
            return error


def _collate(clips: list[VideoClip | DataError]) -> VideoClip | DataError:
    """A batch, or the first error among its clips."""
    whole: list[VideoClip] = []
    for clip in clips:
        if isinstance(clip, DataError):
            return clip
        whole.append(clip)
    first = whole[0]
    for clip in whole:
        if clip.size != first.size:
            return DataError(
                f"Clips of one batch have different sizes: {first.names[0]} is {first.size[1]}x{first.size[0]}, "
                f"{clip.names[0]} is {clip.size[1]}x{clip.size[0]}. Give a size (width, height) to resize them to."
            )
        if clip.labels is not None and first.labels is not None and clip.labels.shape != first.labels.shape:
            sizes = [f"{labels.shape[-1]}x{labels.shape[-2]}" for labels in (first.labels, clip.labels)]
            return DataError(
                f"Labels of one batch have different sizes: {first.names[0]} has {sizes[0]}, {clip.names[0]} has "
                f"{sizes[1]}. With a batch size of 1 (evaluation.batch_size) each is measured at its own."
            )
    return stack_clips(whole)


def start_worker(worker: int) -> None:
    """Workers are the parallelism, so OpenCV starts no threads; and they go on when the run is asked to stop.

    A terminal or a scheduler signals all processes of a run at once, but the main one must finish its step, which may
    need another batch; then it ends its workers itself. What the parent left for Python's collector stays there: a
    decoder that is freed in a fork waits for ever for threads that only the parent has.
    """
    gc.freeze()
    cv2.setNumThreads(0)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):  # Windows has no SIGUSR1
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _end_workers() -> None:
    """Workers that an error has left behind ignore the signal to end, and Python would wait for them for ever."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


atexit.register(_end_workers)
