"""Fabricated run folders, as training and evaluation leave them: street-like pictures, predictions with mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from stcl.labels import get_space
from stcl.ops.colors import colourise
from stcl.pages.results import iou_percent, mean_percent

SPACE = get_space("synthia_seq-cityscapes_seq")
MakeRun = Callable[..., Path]


def street(number: int, height: int = 96, width: int = 192) -> NDArray[np.uint8]:
    """Label map ``(H, W)`` of a street seen from a moving car; frame ``number`` shifts what passes by."""
    index = SPACE.index
    rows, columns = np.mgrid[0:height, 0:width]
    label = np.full((height, width), index("sky"), np.uint8)
    for block in range(-1, 8):  # houses with gaps of trees
        left = block * 34 - 2 * number % 34
        roof = 16 + 9 * ((block * 7 + number // 17) % 3)
        house = (columns >= left) & (columns < left + 27) & (rows > roof)
        label[house] = index("building")
        label[(columns >= left + 27) & (columns < left + 34) & (rows > 30)] = index("vegetation")
    label[rows > 58] = index("sidewalk")
    label[(rows > 56) & (rows < 62) & (columns > 150)] = index("fence")
    label[rows > 60 + np.abs(columns - 96) * 0.42] = index("road")
    for left, what in ((20, "person"), (168, "rider")):
        x = (left + number) % width
        label[(np.abs(columns - x) < 4) & (rows > 46) & (rows < 70)] = index(what)
    label[(np.abs(columns - 96 - 8 * np.sin(number / 5)) < 15) & (rows > 62) & (rows < 80)] = index("car")
    for pole in (44, 140):
        x = (pole - 2 * number) % width
        label[(np.abs(columns - x) < 2) & (rows > 26) & (rows < 66)] = index("pole")
        label[(np.abs(columns - x) < 5) & (rows > 20) & (rows < 30)] = index("light" if pole == 44 else "sign")
    label[rows > 91] = 255  # the bonnet of the own car
    return label


def photograph(label: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Picture ``(H, W, 3)``: muted class colours with noise, darker towards the bottom."""
    noise = np.random.default_rng(seed).normal(0, 9, (*label.shape, 3))
    picture = 0.55 * colourise(label, SPACE.palette) + 60 + noise
    return np.clip(picture * np.linspace(1.15, 0.75, len(label))[:, None, None], 0, 255).astype(np.uint8)


def mistaken(label: NDArray[np.uint8], share: float, seed: int) -> NDArray[np.uint8]:
    """A prediction: ``share`` of the picture, in blobs, takes the class of other places; ignore is filled."""
    random = np.random.default_rng(seed)
    height, width = label.shape
    prediction = label.copy()
    prediction[label == 255] = SPACE.index("road")
    coarse = random.random((-(-height // 8), -(-width // 8))) < share
    blobs = np.kron(coarse, np.ones((8, 8), bool))[:height, :width]
    return np.where(blobs, np.roll(prediction, (6, 17), (0, 1)), prediction).astype(np.uint8)


def write_run(
    folder: Path,
    title: str = "Source only (plain)",
    method: str = "source_only",
    share: float = 0.3,
    oracle: bool = False,
    frames: int = 6,
    losses: tuple[str, ...] = ("source",),
    confusion: NDArray[np.integer] | None = None,
    change: Callable[[dict[str, Any]], object] | None = None,
) -> Path:
    """Write one run folder; ``confusion`` replaces that of the pictures, ``change`` edits `results.json`."""
    counts = np.zeros((len(SPACE), len(SPACE)), np.int64)
    for part in ("frame", "truth", "prediction"):
        (folder / "samples" / part).mkdir(parents=True, exist_ok=True)
    for number in range(frames):
        truth, name = street(number), f"street_{number:03d}.png"
        prediction = mistaken(truth, min(1.0, share * (0.6 + 0.8 * ((number * 5) % 7) / 7)), number)
        Image.fromarray(photograph(truth, number)).save(folder / "samples" / "frame" / name)
        Image.fromarray(truth).save(folder / "samples" / "truth" / name)
        Image.fromarray(prediction).save(folder / "samples" / "prediction" / name)
        np.add.at(counts, (truth[truth != 255], prediction[truth != 255]), 1)
    counts = counts if confusion is None else confusion
    document = _document(folder.name, title, method, oracle, counts, frames)
    if change is not None:
        change(document)
    (folder / "results.json").write_text(json.dumps(document))
    random = np.random.default_rng(len(title))
    lines = ["step,lr,time," + ",".join(f"loss/{name}" for name in losses)]
    for step in range(0, 301, 2):
        values = [0.3 + 2 * np.exp(-step / 70 / (k + 1)) + random.normal(0, 0.08) for k in range(len(losses))]
        lines.append(f"{step},,{step * 0.2:.1f}," + ",".join(f"{value:.4f}" for value in values))
    (folder / "metrics.csv").write_text("\n".join([*lines, "300,0.0001,60.0" + "," * len(losses)]) + "\n")
    return folder


def _document(
    name: str, title: str, method: str, oracle: bool, counts: NDArray[np.integer], frames: int
) -> dict[str, Any]:
    iou = iou_percent(counts)
    return {
        "schema": 1,
        "name": name,
        "title": title,
        "method": method,
        "oracle": oracle,
        "protocol": {
            "name": SPACE.name,
            "version": 1,
            "classes": list(SPACE.names),
            "reported": list(SPACE.reported),
            "averaging": "one confusion matrix over all frames; classes that never occur are left out",
            "resolution": "scores resized to the label map, 192 x 96",
        },
        "data": {"source": "TwinStreets day", "target": "TwinStreets dusk", "split": "val", "frames": frames},
        "miou": round(mean_percent(iou[list(SPACE.reported)]), 2),
        "iou": {c: None if np.isnan(v) else round(float(v), 2) for c, v in zip(SPACE.names, iou, strict=True)},
        "confusion": counts.tolist(),
        "selection": "last EMA weights",
        "statistics": "target batch-norm statistics",
        "seed": 0,
        "steps": 300,
        "config": {"method": method, "training": {"steps": 300, "batch": 2}, "model": {"backbone": "resnet18"}},
        "code": {"version": "0.1.0", "revision": "1a2b3c4"},
        "environment": {"python": "3.11.2", "torch": "2.13.0", "device": "cpu", "threads": 2},
        "seconds": {"train": 80.1, "evaluate": 3.2},
        "date": "2026-11-22",
    }


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """``make_run(name, **arguments of write_run)`` writes a run folder into ``tmp_path``."""
    return lambda name="source_only", **arguments: write_run(tmp_path / name, **arguments)


@pytest.fixture(scope="module")
def four_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Source only, strong source only, STCL and oracle."""
    return write_four(tmp_path_factory.mktemp("runs"))


def write_four(folder: Path, frames: int = 6) -> list[Path]:
    """The usual four runs."""
    strong = "Source only (strong augmentation)"
    losses = ("source", "consistency", "contrast")
    return [
        write_run(folder / "source_only", share=0.42, frames=frames),
        write_run(folder / "strong_source_only", strong, share=0.30, frames=frames),
        write_run(folder / "stcl", "STCL", "stcl", share=0.2, frames=frames, losses=losses),
        write_run(folder / "oracle", "Oracle", "source_only", share=0.08, frames=frames, oracle=True),
    ]
