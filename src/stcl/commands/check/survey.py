"""Reading many frames, labels and flows at once, to see what is in them: nothing here stops at a mistake."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from stcl.data.base import VideoDataset
from stcl.data.clips import ClipDataset
from stcl.data.io import resize_image, unusual_format
from stcl.data.loading import start_worker
from stcl.errors import DataError, StclError
from stcl.files.disks import explain_full_memory
from stcl.labels import LabelSpace
from stcl.ops.warp import inside, photometric_error
from stcl.terminal import progress_bar
from stcl.types import FlowKey, FlowProvider, FrameRef

ALONE = 24
"""So few items are read in this process: starting others takes longer."""

Size = tuple[int, int]
"""Width and height in pixels."""


@runtime_checkable
class StoredFlow(FlowProvider, Protocol):
    """A flow provider that knows which flow lies in a file; flow that does not is estimated, which takes time."""

    def is_stored(self, a: FrameRef, b: FrameRef) -> bool:
        """Whether the flow a -> b is read."""
        ...


@dataclass(frozen=True)
class FrameFacts:
    """What one frame and its label hold; errors are the messages that training would end with.

    Attributes:
        error: why the frame cannot be read, or empty.
        size: of the frame, None where it cannot be read.
        unusual: a format that is converted on reading, see :func:`stcl.data.io.unusual_format`.
        brightness: mean over pixels and channels, 0..255.
        digest: of the pixels; equal frames have equal ones.
        label_error: why the label cannot be read, or empty.
        label_size: None where it cannot be read or was not asked for.
        unknown: pixels of each raw id that the data set does not have.
        pixels: of each class, the ignored ones last ``(C + 1,)``; None where there is no label to count.
    """

    error: str = ""
    size: Size | None = None
    unusual: str = ""
    brightness: float = 0.0
    digest: bytes = b""
    label_error: str = ""
    label_size: Size | None = None
    unknown: dict[int, int] = field(default_factory=dict)
    pixels: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class FlowFacts:
    """How well one flow explains its frame.

    Attributes:
        error: why there is no flow, or empty.
        difference: mean absolute difference of the frame and its warped neighbour where the flow stays inside, 0..1.
        still: the same without any flow.
    """

    error: str = ""
    difference: float = 0.0
    still: float = 0.0


def survey_frames(
    dataset: VideoDataset,
    space: LabelSpace,
    frames: Sequence[tuple[FrameRef, bool]],
    workers: int,
    quiet: bool,
    title: str,
) -> list[FrameFacts]:
    """Read frames and, where the second of a pair is true, their labels.

    Args:
        dataset: how they are read.
        space: classes to count.
        frames: frames, and whether to open the label.
        workers: processes; 0 reads in this one.
        quiet: no progress bar.
        title: of the bar.
    """
    return _in_parallel(partial(_frame_facts, dataset, space, frames), len(frames), workers, quiet, title)


def survey_flows(
    clips: ClipDataset, pairs: Sequence[tuple[FrameRef, FrameRef]], workers: int, quiet: bool, title: str
) -> list[FlowFacts]:
    """Ask the flow provider of clips for the flows of ``pairs``; arguments as of :func:`survey_frames`."""
    return _in_parallel(partial(_flow_facts, clips, pairs), len(pairs), workers, quiet, title)


def flow_pairs(clips: ClipDataset, items: Iterable[int]) -> dict[FlowKey, list[tuple[FrameRef, FrameRef]]]:
    """The pairs of frames that clips want the flow of; a frame that is its own neighbour needs none."""
    found: dict[FlowKey, list[tuple[FrameRef, FrameRef]]] = {key: [] for key in clips.spec.flows}
    for item in items:
        refs = clips.refs(item)
        for a, b in clips.spec.flows:
            if refs[a] is not refs[b]:
                found[a, b].append((refs[a], refs[b]))
    return found


def explain_frame(
    clips: ClipDataset, a: FrameRef, b: FrameRef
) -> tuple[tuple[NDArray[np.uint8], NDArray[np.uint8]], NDArray[np.float32]]:
    """Frames a and b ``(H, W, 3)`` uint8 RGB at the clips' size, and the flow a -> b ``(2, H, W)`` in pixels.

    Raises:
        StclError: a frame cannot be read, or there is no flow of their size.
    """
    assert clips.flow is not None
    images = [clips.dataset.read_frame(ref) for ref in (a, b)]
    if clips.size is not None:
        images = [resize_image(image, clips.size) for image in images]
    flow = clips.flow(a, b, images[0], images[1])
    height, width = images[0].shape[:2]
    if flow.shape != (2, height, width):
        raise DataError(f"The flow of frame {a.image} has shape {flow.shape}; expected (2, {height}, {width}).")
    return (images[0], images[1]), flow


def _frame_facts(
    dataset: VideoDataset, space: LabelSpace, frames: Sequence[tuple[FrameRef, bool]], item: int
) -> FrameFacts:
    (ref, with_label), found = frames[item], dict[str, Any]()
    try:
        image = dataset.read_frame(ref)
    except StclError as error:
        found["error"] = str(error)
    else:
        found["size"] = (image.shape[1], image.shape[0])
        found["brightness"] = float(image.mean())
        found["digest"] = blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        found["unusual"] = unusual_format(ref.image) if ref.frame is None else ""
    if with_label:
        found |= _label_facts(dataset, space, ref)
    return FrameFacts(**found)


def _label_facts(dataset: VideoDataset, space: LabelSpace, ref: FrameRef) -> dict[str, Any]:
    try:
        label = dataset.read_label(ref, space)
    except StclError as error:
        try:  # the message has the first of the ids alone
            unknown = dataset.unknown_ids(dataset.read_raw_label(ref))
        except StclError:
            unknown = {}
        return {"unknown": unknown} if unknown else {"label_error": str(error)}
    counts = np.bincount(label.ravel(), minlength=256)
    pixels = np.append(counts[: len(space)], counts[len(space) :].sum())
    return {"label_size": (label.shape[1], label.shape[0]), "pixels": pixels}


def _flow_facts(clips: ClipDataset, pairs: Sequence[tuple[FrameRef, FrameRef]], item: int) -> FlowFacts:
    a, b = pairs[item]
    try:
        images, flow = explain_frame(clips, a, b)
    except StclError as error:
        return FlowFacts(error=str(error))
    frame, other = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in images)
    motion = torch.from_numpy(flow)[None]
    seen = inside(motion)
    if not seen.any():
        return FlowFacts(error=f"The flow of frame {a.image} leaves the frame everywhere.")
    moved = photometric_error(frame, other, motion)[seen].mean()
    return FlowFacts(difference=float(moved), still=float((frame - other).abs().mean(1)[seen].mean()))


def _in_parallel(read: Callable[[int], Any], count: int, workers: int, quiet: bool, title: str) -> list[Any]:
    """``read(0), read(1), ...``, with a bar."""
    items = DataLoader(
        _Items(read, count),
        batch_size=None,
        num_workers=workers if count > ALONE else 0,
        worker_init_fn=start_worker,
    )
    with progress_bar(quiet, transient=True) as bar, explain_full_memory():
        task, found = bar.add_task(title, total=count), []
        for facts in items:
            found.append(facts)
            bar.advance(task)
    return found


class _Items(Dataset[Any]):
    def __init__(self, read: Callable[[int], Any], count: int) -> None:
        self.read, self.count = read, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> Any:
        return self.read(item)
