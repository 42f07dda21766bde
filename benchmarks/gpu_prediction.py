"""Sections of gpu_report.py about prediction: frames a second of the network alone, and of a whole film."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from gpu_worker import NotHereError, Report
from measure import device, seconds_in_a_row
from numpy.typing import NDArray
from streaming import make_network
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stcl.errors import SettingError
from stcl.models import VideoSegmenter
from stcl.models.views import FrameViews
from stcl.ops.decisions import decide

CLASSES = 12
BATCH = 2
"""Frames that pass together, as in `stcl predict`; with tiles one."""

NETWORKS = {
    "resnet101": ("resnet101", "stcl", True),
    "mit_b5": ("mit_b5", "daformer", False),
    "dinov2_large": ("dinov2_large", "mlp", False),
}
TINY = {
    "resnet101": ("small", "stcl", True),
    "mit_b5": ("mit_b0", "daformer", False),
    "dinov2_large": ("dinov2_small", "mlp", False),
}
"""Backbone, head, auxiliary head."""

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Video:
    """Frames and flow in the host's memory, as prediction has them: ``(H, W, 3)`` bytes, ``(2, H, W)`` px."""

    frame: NDArray[np.uint8]
    flow: NDArray[np.float32]

    @classmethod
    def of(cls, size: tuple[int, int]) -> "Video":
        """Noise of ``size (width, height)``."""
        draws, (width, height) = np.random.default_rng(0), size
        frame = draws.integers(0, 256, (height, width, 3), np.uint8)
        return cls(frame, draws.standard_normal((2, height, width), np.float32) * 3)

    def tensors(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The frame again and again, copied to the device as prediction does."""
        first = True
        while True:
            image = torch.from_numpy(self.frame).to(device()).permute(2, 0, 1)[None].float() / 255
            yield image, None if first else torch.from_numpy(self.flow)[None].to(device())
            first = False


def stream(report: Report) -> None:
    """Frames of 2048x1024, flow at hand: a stream as prediction has it, in float32 and bfloat16, whole and in tiles."""
    video = Video.of((128, 64) if report.tiny else (2048, 1024))
    tile = (64, 64) if report.tiny else (512, 1024)  # height, width
    ways: dict[str, tuple[tuple[int, int] | None, bool]] = {
        "": (None, False),
        ", bfloat16": (None, True),
        f", tiles of {tile[1]}x{tile[0]}": (tile, False),
    }
    for name, (backbone, head, auxiliary) in (TINY if report.tiny else NETWORKS).items():
        make = cache(partial(make_network, backbone, CLASSES, head, auxiliary))
        for way, (tiles, bf16) in ways.items():
            report.part(name + way, lambda tiles=tiles, bf16=bf16: frames_a_second(report, make(), video, tiles, bf16))  # noqa: B023


def frames_a_second(
    report: Report, network: VideoSegmenter, video: Video, tile: tuple[int, int] | None, bf16: bool
) -> Figures:
    """Rate of one network, in batches as prediction has them; the labels come back to the host."""
    batch = 1 if tile else BATCH
    outputs = network.stream(video.tensors(), FrameViews(network, tile=tile), batch)

    def turn() -> None:
        with torch.autocast(device().type, torch.bfloat16, enabled=bf16):
            for output in islice(outputs, batch):
                decide(output.logits[0], video.frame.shape[:2], confidence=False)[0].cpu()

    try:
        with FlopCounterMode(display=False) as counter:
            turn()
    except SettingError as error:  # tiles that the network's stride does not divide
        raise NotHereError(str(error)) from None
    first = seconds_in_a_row(turn, 2)[-1]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    count = 1 if report.tiny else max(3, min(30, int(2.0 / first)))
    seconds = median(seconds_in_a_row(turn, count)) / batch
    flop = counter.get_total_flops() / batch
    figures = {"frames_per_second": 1 / seconds, "frame_seconds": seconds, "frames": count * batch, "batch": batch}
    figures |= {"frame_flop": flop, "flop_per_second": flop / seconds}
    return figures | ({"peak_bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {})


def film(report: Report) -> None:
    """A film of 1920x1080 to its overlay by `stcl predict`: decoding, flow, network, drawing and encoding."""
    from networks import settings_of

    from stcl.models import save_weights
    from stcl.pages.film import VideoWriter
    from stcl.training.networks import untrained

    full, seen, half, frames = ((1920, 1080), (1024, 512), (512, 256), 120)
    if report.tiny:
        full, seen, half, frames = (128, 72), (64, 32), (64, 32), 4
    large = "small" if report.tiny else "resnet101"
    path, weights = report.folder / "film.mp4", report.folder / f"{large}.safetensors"

    def write() -> Figures:
        draws = np.random.default_rng(0)
        picture = draws.integers(0, 256, (full[1] // 8, full[0] // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        started = time.perf_counter()
        with VideoWriter(path, fps=25, preset="veryfast") as writer:
            for number in range(frames):
                writer.write(np.ascontiguousarray(np.roll(picture, 4 * number, 1)))
        rate = frames / (time.perf_counter() - started)
        settings = settings_of(large, seen)
        save_weights(untrained(settings), weights, {"config": settings.dump()})
        return {"frames": frames, "frames_per_second": rate}

    report.part(f"writing the film, {full[0]}x{full[1]}", write)
    ways: list[tuple[str, Path | str, dict[str, Any]]] = [
        (f"{large} at {seen[0]}x{seen[1]}", weights, {"size": seen}),
        (f"{large} at {seen[0]}x{seen[1]}, without flow", weights, {"size": seen, "flow": "none"}),
        (f"{large} at {full[0]}x{full[1]}", weights, {"size": full}),
        (f"builtin:small at {half[0]}x{half[1]}", "builtin:small", {"size": half}),
    ]
    for name, checkpoint, options in ways[::3] if report.tiny else ways:
        report.part(name, partial(overlay, report, path, checkpoint, options))


def overlay(report: Report, path: Path, checkpoint: Path | str, options: dict[str, Any]) -> Figures:
    """Frames a second of `stcl predict`, after some frames that are not counted."""
    from stcl.commands.predict.frames import PredictOptions
    from stcl.commands.predict.run import Job, predict_files

    job = Job(PredictOptions(**options), quiet=True)
    for number, limit in enumerate((2, None)):
        report.doing("first frames" if limit else "the whole film")
        out = report.folder / f"{len([*report.folder.iterdir()])}-{number}"
        (outcome,) = predict_files([str(path)], checkpoint, out, replace(job, limit=limit))
        if outcome.problem:
            raise RuntimeError(outcome.problem)
    figures = {"frames": outcome.frames, "frames_per_second": outcome.fps}
    figures["overlay_bytes"] = (outcome.folder / "overlay.mp4").stat().st_size
    return figures | ({"peak_bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {})
