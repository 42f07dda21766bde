"""How well optical flow explains the frames of a configuration's domains: numbers, and pictures to look at.

No label is opened. :mod:`stcl.commands.flow.page` makes a page of the files.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stcl.data import ClipDataset
from stcl.data.io import write_image
from stcl.errors import DataError, SettingError
from stcl.fields import changed
from stcl.files.folders import OwnFiles
from stcl.files.writing import write_atomic
from stcl.ops.colors import flow_colours
from stcl.ops.warp import UNKNOWN_PX, consistent, inside, photometric_error, warp
from stcl.terminal import progress_bar
from stcl.training.domains import make_flow, open_dataset
from stcl.training.settings import DomainSettings, Settings
from stcl.types import ClipSpec, FlowProvider

SCHEMA = 1
RECORD, PAGE, PICTURES = "flow.json", "flow.html", "pictures"
VERB = "stcl flow --report"

BOTH = ("frame", "previous")
OF_FLOW = ("warped", "error", "flow", "validity")
"""Pictures of a pair, and of each flow between its frames."""

SHOWN = 3
"""Pairs of each domain that are kept as pictures."""

LARGEST_ERROR = 0.25
"""Where the colours of errors end, as a difference of colours 0..1."""

_BINS = 1000
_HIDDEN, _OUTSIDE = (220, 60, 40), (60, 110, 230)
"""Colours of pixels whose way there and back does not end where it began, and of those that leave the frame."""


@dataclass
class Quality:
    """What one flow did on all pairs of a domain: a histogram of the errors, and sums over pixels."""

    errors: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    pixels: int = 0
    length_px: float = 0.0
    consistent: int = 0
    consistent_error: float = 0.0
    both_ways: bool = True
    seconds: float = 0.0

    def add(self, error: Tensor, flow: Tensor, seen: Tensor, sure: Tensor | None, seconds: float) -> None:
        """Count a pair: ``error``, ``seen`` and ``sure`` are ``(1, H, W)``; ``sure`` is None without a way back."""
        counts, _ = np.histogram(error[seen].numpy(), _BINS, (0, 1))
        self.errors += counts
        self.pixels += seen.numel()
        self.length_px += float(flow.norm(dim=1)[seen].sum())
        self.seconds += seconds
        if sure is None:
            self.both_ways = False
        else:
            self.consistent += int(sure.sum())
            self.consistent_error += float(error[sure].sum())

    def summary(self, pairs: int) -> dict[str, float | None]:
        """Errors in grey levels 0..255 over pixels that stay inside the frame, shares in percent."""
        stay, middles = int(self.errors.sum()), (np.arange(_BINS) + 0.5) / _BINS * 255
        at = np.searchsorted(self.errors.cumsum(), np.array([0.5, 0.9, 0.99]) * stay)
        sure = self.consistent if self.both_ways else 0
        return {
            "mean": float((self.errors * middles).sum() / max(stay, 1)),
            **{name: float(middles[bin_]) for name, bin_ in zip(("median", "p90", "p99"), at, strict=True)},
            "length_px": self.length_px / max(stay, 1),
            "inside": 100 * stay / self.pixels,
            "consistent": 100 * sure / self.pixels if self.both_ways else None,
            "consistent_mean": 255 * self.consistent_error / sure if sure else None,
            "milliseconds": 1000 * self.seconds / pairs,
        }


def measure_flow(settings: Settings, out: Path, pairs: int, against: Sequence[str], quiet: bool = False) -> Path:
    """Write ``out/flow.json`` and ``out/pictures/``: how well flow explains frames t by the frames before them.

    Args:
        settings: of a run: its domains, and the flow that comes first.
        out: a new or empty folder, or one of an earlier report, which is replaced.
        pairs: of each domain at most, evenly spread.
        against: names of further flows.
        quiet: no progress bar.

    Returns:
        ``out``.

    Raises:
        SettingError: no pair, an unknown flow, or ``out`` holds something else.
    """
    if pairs < 1:
        raise SettingError(f"--pairs counts pairs of frames of each domain: at least 1, not {pairs}.")
    own = OwnFiles(out, RECORD, VERB)
    with own.alone():
        return _measure(settings, own, pairs, [*dict.fromkeys((settings.flow.name, *against))], quiet)


def _measure(settings: Settings, own: OwnFiles, pairs: int, names: list[str], quiet: bool) -> Path:
    """The same in a folder that is this process's alone."""
    out, domains = own.folder, {"source": settings.source, "target": settings.target}
    opened = {role: _open(settings, domain, names, pairs) for role, domain in domains.items()}
    shown = {role: _shown(len(clips)) for role, (clips, _) in opened.items()}
    files = [PAGE, *(_picture(role, item, name) for role in shown for item in shown[role] for name in _parts(names))]
    own.begin(files)
    with progress_bar(quiet) as progress:
        task = progress.add_task("flow", total=sum(len(clips) * len(names) for clips, _ in opened.values()))
        described = []
        for role, (clips, flows) in opened.items():
            quality, kept = {name: Quality() for name in names}, list[dict[str, Any]]()
            for item in range(len(clips)):
                keep = out / PICTURES / f"{role}_{item}" if item in shown[role] else None
                if (pictures := _compare(clips, item, flows, quality, keep)) is not None:
                    kept.append(pictures)
                progress.advance(task, len(names))
            described.append({"role": role, "data": str(clips.dataset), **_described(clips, flows, quality, kept)})
    record: dict[str, Any] = {"schema": SCHEMA, "title": settings.title, "flows": names, "domains": described}
    record |= {"largest_error": 255 * LARGEST_ERROR, "date": time.strftime("%Y-%m-%d"), "files": files}
    write_atomic(out / RECORD, json.dumps(record, indent=1).encode())
    return out


def _shown(count: int) -> list[int]:
    """Which of so many pairs are kept as pictures, evenly spread."""
    return [*dict.fromkeys(np.linspace(0, count - 1, min(SHOWN, count)).round().astype(int).tolist())]


def _parts(names: Sequence[str]) -> list[str]:
    """The pictures of a pair."""
    return [*BOTH, *(f"{name}_{part}" for name in names for part in OF_FLOW)]


def _picture(role: str, item: int, name: str) -> str:
    """Where a picture lies below the report's folder."""
    return f"{PICTURES}/{role}_{item}/{name}.png"


def _open(
    settings: Settings, domain: DomainSettings, names: Sequence[str], pairs: int
) -> tuple[ClipDataset, dict[str, FlowProvider]]:
    dataset = open_dataset(domain)
    flows = {name: make_flow(changed(settings.flow, name=name), dataset) for name in names}
    clips = ClipDataset(dataset, ClipSpec(frames=(0, -1)), settings.space, domain.size, domain.frames)
    clips.thin(pairs)
    return clips, flows


def _described(
    clips: ClipDataset, flows: dict[str, FlowProvider], quality: dict[str, Quality], kept: list[dict[str, Any]]
) -> dict[str, Any]:
    rows = [
        {"flow": name, "signature": getattr(flow, "signature", name), **quality[name].summary(len(clips))}
        for name, flow in flows.items()
    ]
    height, width = clips[0].size
    return {"pairs": len(clips), "size": [width, height], "rows": rows, "shown": kept}


def _compare(
    clips: ClipDataset, item: int, flows: dict[str, FlowProvider], quality: dict[str, Quality], keep: Path | None
) -> dict[str, Any] | None:
    """Measure every flow on one pair; with a folder to ``keep`` them in, pictures of it."""
    refs, clip = clips.refs(item), clips[item]
    images = {at: np.ascontiguousarray(clip.frame(at).permute(1, 2, 0).numpy()) for at in (0, -1)}
    frame, before = (clip.frame(at)[None].float() / 255 for at in (0, -1))
    shown: dict[str, Any] = {"name": clip.names[0], "flows": {}}
    largest: float | None = None
    for name, flow in flows.items():
        started = time.perf_counter()
        there = torch.from_numpy(flow(refs[0], refs[-1], images[0], images[-1]))[None]
        seconds = time.perf_counter() - started
        try:
            back = torch.from_numpy(flow(refs[-1], refs[0], images[-1], images[0]))[None]
        except DataError:  # files often have the way to the previous frame alone
            back = None
        error, seen = photometric_error(frame, before, there), inside(there)
        sure = None if back is None else consistent(there, back)
        quality[name].add(error, there, seen, sure, seconds)
        if keep is not None:
            if largest is None:  # one scale for all flows of a pair
                largest = max(1.0, float(there.norm(dim=1)[seen].quantile(0.99))) if seen.any() else 1.0
            warped = warp(before, there)[0].permute(1, 2, 0).mul(255).round().byte().numpy()
            pictures = (
                warped,
                error_colours(error[0].numpy()),
                shown_flow(there[0].numpy(), largest),
                validity_colours(images[0], seen[0].numpy(), None if sure is None else sure[0].numpy()),
            )
            shown["flows"][name] = {
                part: _write(keep / f"{name}_{part}.png", image) for part, image in zip(OF_FLOW, pictures, strict=True)
            }
    if keep is None:
        return None
    both = {part: _write(keep / f"{part}.png", images[at]) for part, at in zip(BOTH, (0, -1), strict=True)}
    return {**shown, **both, "largest_px": largest}


def shown_flow(flow: NDArray[np.float32], largest_px: float) -> NDArray[np.uint8]:
    """Colours ``(H, W, 3)`` of a flow ``(2, H, W)``; vectors that are not known are grey."""
    colours = flow_colours(flow, largest_px)
    colours[flow[0] == UNKNOWN_PX] = 128
    return colours


def error_colours(error: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colours ``(H, W, 3)`` of errors ``(H, W)`` 0..1: dark is none, bright :data:`LARGEST_ERROR` and more."""
    levels = np.rint(np.clip(error / LARGEST_ERROR, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB).astype(np.uint8)


def validity_colours(
    image: NDArray[np.uint8], seen: NDArray[np.bool_], sure: NDArray[np.bool_] | None
) -> NDArray[np.uint8]:
    """The grey image with what is not consistent in one colour, and what leaves the frame in another."""
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    hidden = np.zeros_like(seen) if sure is None else seen & ~sure
    for mask, colour in ((hidden, _HIDDEN), (~seen, _OUTSIDE)):
        grey[mask] = 0.3 * grey[mask] + 0.7 * np.array(colour)
    return np.rint(grey).astype(np.uint8)


def _write(path: Path, image: NDArray[np.uint8]) -> str:
    """Write a picture; its place in the report's folder."""
    write_image(path, image)
    return path.relative_to(path.parents[2]).as_posix()
