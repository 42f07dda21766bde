"""Tiny trees in the real layouts. A new data set adds its writer to ``WRITERS`` and inherits the contract tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stcl.data.io import write_image, write_label
from stcl.labels import RAW_IDS


def picture(width: int, height: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def raw_label(name: str, width: int, height: int) -> np.ndarray:
    """Stripes of every raw id of a data set."""
    ids = np.array(sorted(RAW_IDS[name]), np.uint8)
    return np.broadcast_to(ids[np.arange(width) % len(ids)], (height, width)).copy()


def synthia(root: Path, sequences: int, frames: int, size: tuple[int, int]) -> None:
    for sequence in range(sequences):
        for frame in range(frames):
            folder = root / f"SEQS-{sequence:02d}"
            write_image(folder / f"rgb/{frame:06d}.png", picture(*size, frame))
            raw = raw_label("synthia_seq", *size).astype(np.uint16)
            # instance ids beyond 8 bits in the second channel must not leak into the class ids
            write_label(folder / f"label/{frame:06d}.png", np.stack((raw, raw + 1000, raw * 0 + 7), -1))


def cityscapes(root: Path, sequences: int, frames: int, size: tuple[int, int]) -> None:
    for sequence in range(sequences):
        for frame in range(frames):
            name = f"train/ulm/ulm_{sequence:06d}_{frame:06d}"
            write_image(root / f"leftImg8bit_sequence/{name}_leftImg8bit.png", picture(*size, frame))
        label = root / f"gtFine/train/ulm/ulm_{sequence:06d}_{min(19, frames - 1):06d}_gtFine_labelIds.png"
        write_label(label, raw_label("cityscapes_seq", *size))
        label.with_name(label.name.replace("labelIds", "color")).write_bytes(b"not used")


def camvid(root: Path, sequences: int, frames: int, size: tuple[int, int]) -> None:
    for sequence in range(sequences):
        for frame in range(frames):
            name = f"{sequence:04d}TP_f{30 * frame:05d}"
            write_image(root / f"train/{name}.jpg", picture(*size, frame))
            write_label(root / f"trainannot/{name}.png", raw_label("camvid", *size))


WRITERS: dict[str, Callable[[Path, int, int, tuple[int, int]], None]] = {
    "synthia_seq": synthia,
    "cityscapes_seq": cityscapes,
    "camvid": camvid,
}

Write = Callable[..., Path]


@pytest.fixture
def write_tree(tmp_path: Path) -> Write:
    """``write_tree(name, sequences=2, frames=4, size=(48, 32))`` -> root."""

    def write(name: str, sequences: int = 2, frames: int = 4, size: tuple[int, int] = (48, 32)) -> Path:
        root = tmp_path / name
        WRITERS[name](root, sequences, frames, size)
        return root

    return write
