"""Prediction: a trained network on video without labels, frame by frame."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stcl.commands.predict.background import InBackground
from stcl.data.frames import FrameSource, VideoFrame
from stcl.data.io import resize_image
from stcl.errors import DataError, SettingError, lookup
from stcl.flow import SignedFlow, get_flow
from stcl.methods.settings import check_frame_size, nearest_frame_size
from stcl.models import VideoSegmenter
from stcl.models.views import FrameViews, check_views
from stcl.ops.cuts import unexplained
from stcl.ops.decisions import decide
from stcl.ops.warp import resize_flow
from stcl.types import FrameRef

SMALLEST_FRAME_PX = 16
"""Frames that are smaller than this each way hold nothing to be segmented."""

CUT_WIDTH_PX = 160
"""Width of the small copies of frames that cuts are looked for in."""

BATCH = 2
"""Frames that pass the network together; a live video waits for none."""

FLOWS = {"dis": "dis", "none": None}
"""Flow between frames by name; without it each frame is segmented by itself."""


@dataclass(frozen=True)
class PredictOptions:
    """How frames are segmented.

    Args:
        size: ``(width, height)`` px that the network sees; None: the frame's own.
        flow: ``dis``, or ``none``, which segments each frame by itself.
        cut: the stream starts anew where flow leaves more than this share of a frame's contrast unexplained
            (:func:`stcl.ops.cuts.unexplained`); 0.35 lies above fast motion and below most cuts.
        flip: average with the mirrored frame.
        scales: average over these relative sizes.
        tile: ``(width, height)`` px of overlapping tiles that the network sees one by one; None: all in one piece.
        device: torch's name; None: a GPU where there is one.
        confidence: also the probability of each pixel's label.
    """

    size: tuple[int, int] | None = None
    flow: str = "dis"
    cut: float = 0.35
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    tile: tuple[int, int] | None = None
    device: str | None = None
    confidence: bool = True

    def __post_init__(self) -> None:
        lookup(FLOWS, self.flow, "flow of a prediction")
        find_device(self.device)
        check_views(self.scales, self.tile and (self.tile[1], self.tile[0]))
        if not self.cut > 0:  # nor is it no number
            raise SettingError(f"The share of contrast that makes a cut must be above 0; found {self.cut}.")
        check_frame_size(self.size, "The network's input")


@dataclass(frozen=True)
class FrameResult:
    """What the network says of one frame.

    Attributes:
        index: of the frame, from 0.
        name: of the frame: its file's, or its number.
        ticks: when it is shown, in ticks of the source.
        time_s: the same in seconds.
        frame: ``(H, W, 3)`` uint8 RGB.
        labels: train ids ``(H, W)`` uint8, at the frame's size.
        confidence: probability of the label ``(H, W)`` float32 0..1, or None where it was not wanted.
        shares: share of the frame that each class has, ``(C,)``; they sum to 1.
        restarted: True where the stream started anew: the first frame, after a cut, after a gap.
    """

    index: int
    name: str
    ticks: int
    time_s: float
    frame: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32] | None
    shares: NDArray[np.float64]
    restarted: bool


class _Step(NamedTuple):
    """A frame on its way: as the network sees it, and the flow to the frame before (None: the stream starts anew)."""

    frame: VideoFrame
    image: NDArray[np.uint8]
    flow: NDArray[np.float32] | None


def predict_frames(
    source: FrameSource,
    network: VideoSegmenter,
    options: PredictOptions | None = None,
    first: int = 0,
) -> Iterator[FrameResult]:
    """Segment a video lazily; reading, flow and network overlap, each in a thread of its own.

    Args:
        source: the video.
        network: in evaluation mode; batch-norm statistics stay as they are.
        options: how.
        first: number of the first frame that is wanted. The result is as if the video had been segmented from its
            beginning: all that a frame takes from the past is the scores of the one before.
    """
    options = options or PredictOptions()
    check_frames(source)
    network = network.to(find_device(options.device)).eval()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    batch = 1 if source.live or options.tile else BATCH
    start = max(0, (first // batch - 1) * batch)  # frames pass in the same company as from the beginning: equal bits
    views = FrameViews(network, options.flip, options.scales, options.tile and (options.tile[1], options.tile[0]))
    input_size = options.size or nearest_frame_size((source.size[1], source.size[0]))
    name = FLOWS[options.flow] if network.fusion is not None else None
    flow = None if name is None else get_flow(name, preset="fast")
    with (
        InBackground(source.frames(start)) as frames,
        InBackground(_steps(frames, input_size, flow, options.cut)) as steps,
        InBackground(_segment(steps, views, batch, source.time_base_s, options.confidence)) as results,
    ):
        for result in results:
            if result.index >= first:
                yield result


def find_device(name: str | None) -> torch.device:
    """The device by torch's name; None: a GPU where there is one."""
    gpus = torch.cuda.device_count()
    try:
        device = torch.device(name or ("cuda" if gpus else "cpu"))
    except RuntimeError:  # a word that torch does not know
        device = None
    if device is None or (device.type == "cuda" and (device.index or 0) >= gpus):
        known = ", ".join(["cpu", *(f"cuda:{number}" for number in range(gpus))])
        raise SettingError(f"There is no device '{name}' here. There is: {known}.")
    return device


def check_frames(source: FrameSource) -> None:
    """Refuse frames in which nothing can be seen."""
    if min(source.size) < SMALLEST_FRAME_PX:
        raise DataError(
            f"Frames of '{source.name}' are {source.size[1]}x{source.size[0]} px; at least {SMALLEST_FRAME_PX} px each "
            "way are needed."
        )


def _steps(frames: Iterable[VideoFrame], size: tuple[int, int], flow: SignedFlow | None, cut: float) -> Iterator[_Step]:
    """Frames at the network's size with the flow to the one before, where there is one that it explains."""
    before: NDArray[np.uint8] | None = None
    for frame in frames:
        image, vectors = resize_image(frame.image, size), None
        if flow is not None and before is not None and frame.follows:
            reference = FrameRef("", frame.index, Path(frame.name))
            vectors = flow(reference, reference, image, before)
            if is_cut(image, before, vectors, cut):
                vectors = None
        yield _Step(frame, image, vectors)
        before = image


def is_cut(image: NDArray[np.uint8], previous: NDArray[np.uint8], flow: NDArray[np.float32], threshold: float) -> bool:
    """Whether the flow leaves more than ``threshold`` of a frame's contrast unexplained, seen on small copies.

    Args:
        image, previous: ``(H, W, 3)`` uint8 RGB.
        flow: image -> previous, ``(2, H, W)`` pixels.
        threshold: 0..1.
    """
    height, width = image.shape[:2]
    small = (max(1, round(height * CUT_WIDTH_PX / width)), CUT_WIDTH_PX) if width > CUT_WIDTH_PX else (height, width)
    current, other = (_as_tensor(resize_image(each, (small[1], small[0]))) for each in (image, previous))
    vectors = resize_flow(torch.from_numpy(flow)[None], small, align_corners=False)
    return float(unexplained(current, other, vectors)) > threshold


def _as_tensor(image: NDArray[np.uint8]) -> Tensor:
    """``(H, W, 3)`` bytes as ``(1, 3, H, W)`` float 0..1."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


@torch.no_grad()
def _segment(
    steps: Iterable[_Step], views: FrameViews, batch: int, time_base_s: Fraction, confidence: bool
) -> Iterator[FrameResult]:
    device, waiting = next(views.network.parameters()).device, deque[_Step]()

    def tensors() -> Iterator[tuple[Tensor, Tensor | None]]:
        for step in steps:
            waiting.append(step)
            image = torch.from_numpy(step.image).to(device).permute(2, 0, 1)[None].float() / 255
            yield image, None if step.flow is None else torch.from_numpy(step.flow)[None].to(device)

    for output in views.network.stream(tensors(), views, batch):
        frame, _, flow = waiting.popleft()
        height, width = frame.image.shape[:2]
        labels, sure = decide(output.logits[0], (height, width), confidence)
        counts = torch.bincount(labels.flatten(), minlength=output.logits.shape[1])
        yield FrameResult(
            index=frame.index,
            name=frame.name,
            ticks=frame.ticks,
            time_s=float(frame.ticks * time_base_s),
            frame=frame.image,
            labels=labels.cpu().numpy(),
            confidence=None if sure is None else sure.cpu().numpy(),
            shares=(counts.double() / labels.numel()).cpu().numpy(),
            restarted=flow is None,
        )
