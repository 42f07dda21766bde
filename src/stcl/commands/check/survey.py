"""What is in the files: many frames, labels and flows are read at once, and nothing here stops at a mistake."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeVar, cast

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
from stcl.ops.warp import inside, photometric_error, warp
from stcl.terminal import progress_bar
from stcl.types import FlowKey, FrameRef

FEW_ITEMS = 24  # so few items are read in this process: starting others takes longer

Size = tuple[int, int]
"""Width and height in pixels."""

Pair = tuple[FrameRef, FrameRef]
"""Frames a and b of a flow a -> b."""

Item = TypeVar("Item")
Facts = TypeVar("Facts")


@dataclass(frozen=True)
class FrameFacts:
    """What one frame and its label hold; errors are the messages that training would end with."""

    ref: FrameRef
    error: str = ""  # why the frame cannot be read
    size: Size | None = None  # None where the frame cannot be read
    unusual: str = ""  # a format that is converted on reading, see `unusual_format`
    brightness: float = 0.0  # mean over pixels and channels, 0..255
    digest: bytes = b""  # of the pixels
    label_error: str = ""  # why the label cannot be read
    label_size: Size | None = None  # None where no label was read
    unknown: dict[int, int] = field(default_factory=dict)  # pixels of each raw id that the data set does not have
    pixels: NDArray[np.int64] | None = None  # of each class, the ignored ones last (C + 1,); None: no label was read


@dataclass(frozen=True)
class FlowFacts:
    """How well a flow a -> b explains frame a; mean absolute differences of colours, 0..1, where it stays inside."""

    a: FrameRef
    b: FrameRef
    error: str = ""  # why there is no flow that could explain anything
    difference: float = 1.0  # between frame a and its neighbour, warped
    still: float = 1.0  # between frame a and its neighbour as it is
    pictures: dict[str, NDArray[Any]] = field(default_factory=dict)  # see `read_flow`


def survey(read: Callable[[Item], Facts], items: Sequence[Item], workers: int, quiet: bool, title: str) -> list[Facts]:
    """``read`` of every item, in order; by ``workers`` processes, or in this one for 0, with a progress bar."""
    loader = DataLoader(
        cast("Dataset[Any]", items),
        batch_size=None,
        collate_fn=cast("Callable[[Any], Facts]", read),
        num_workers=workers if len(items) > FEW_ITEMS else 0,
        worker_init_fn=start_worker,
    )
    with progress_bar(quiet, transient=True) as bar, explain_full_memory():
        task, results = bar.add_task(title, total=len(items)), []
        for facts in loader:
            results.append(facts)
            bar.advance(task)
    return results


def read_frame(dataset: VideoDataset, space: LabelSpace, wanted: tuple[FrameRef, bool]) -> FrameFacts:
    """Read a frame and, where the second part of ``wanted`` is true, its label; classes of ``space`` are counted."""
    ref, with_label = wanted
    facts: dict[str, Any] = {}
    try:
        image = dataset.read_frame(ref)
    except StclError as error:
        facts["error"] = str(error)
    else:
        facts["size"] = (image.shape[1], image.shape[0])
        facts["brightness"] = float(image.mean())
        facts["digest"] = blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        facts["unusual"] = unusual_format(ref.image) if ref.frame is None else ""
    if not with_label:
        return FrameFacts(ref, **facts)
    try:
        label = dataset.read_label(ref, space)
    except StclError as error:
        facts["label_error"] = str(error)
        with suppress(StclError):  # the message names only the first ids
            unknown = dataset.unknown_ids(dataset.read_raw_label(ref))
            facts |= {"label_error": "", "unknown": unknown} if unknown else {}
    else:
        counts = np.bincount(label.ravel(), minlength=256)
        facts["pixels"] = np.append(counts[: len(space)], counts[len(space) :].sum())
        facts["label_size"] = (label.shape[1], label.shape[0])
    return FrameFacts(ref, **facts)


def flow_pairs(clips: ClipDataset, items: Iterable[int]) -> dict[FlowKey, list[Pair]]:
    """The pairs of frames that clips want the flow of; a frame that is its own neighbour needs none."""
    pairs: dict[FlowKey, list[Pair]] = {key: [] for key in clips.spec.flows}
    for refs in map(clips.refs, items):
        for a, b in clips.spec.flows:
            if refs[a] is not refs[b]:
                pairs[a, b].append((refs[a], refs[b]))
    return pairs


def read_flow(clips: ClipDataset, pair: Pair, pictures: bool = False) -> FlowFacts:
    """Ask the clips' flow provider for the flow of a pair and compare the frames at the clips' size.

    With ``pictures``, the facts have ``frame`` a and frame b ``warped`` to it, both ``(H, W, 3)`` uint8 RGB, and their
    ``difference (H, W)`` float32 0..1, which is 1 where the flow leaves the frame.
    """
    assert clips.flow is not None
    a, b = pair
    try:
        images = [clips.dataset.read_frame(ref) for ref in pair]
        if clips.size is not None:
            images = [resize_image(image, clips.size) for image in images]
        vectors = clips.flow(a, b, images[0], images[1])
        height, width = images[0].shape[:2]
        if vectors.shape != (2, height, width):
            raise DataError(f"The flow of frame {a.image} has shape {vectors.shape}; expected (2, {height}, {width}).")
    except StclError as error:
        return FlowFacts(a, b, str(error))
    frame, neighbour = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in images)
    flow = torch.from_numpy(vectors)[None]
    difference, stays = photometric_error(frame, neighbour, flow), inside(flow)
    drawn: dict[str, NDArray[Any]] = {}
    if pictures:
        warped = warp(neighbour, flow)[0].permute(1, 2, 0).mul(255).round().byte().numpy()
        drawn = {"frame": images[0], "warped": warped, "difference": difference[0].numpy()}
    if not stays.any():
        return FlowFacts(a, b, f"The flow of frame {a.image} leaves the frame everywhere.", pictures=drawn)
    still = (frame - neighbour).abs().mean(1)[stays].mean()
    return FlowFacts(a, b, "", float(difference[stays].mean()), float(still), drawn)
