"""Tiny trees in the real layouts. A new data set adds its writer to ``WRITERS`` and inherits the contract tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stcl.data.io import write_image, write_label, write_palette
from stcl.labels import PALETTE, RAW_IDS, VOID

RAW_NAMES = RAW_IDS | {"folder": {0: VOID, 1: VOID} | {20 - place: name for place, name in enumerate(PALETTE)}}
"""``raw id -> class name`` of every data set; own data has a class map in its tree."""


def picture(width: int, height: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def raw_label(name: str, width: int, height: int) -> np.ndarray:
    """Stripes of every raw id of a data set."""
    ids = np.array(sorted(RAW_NAMES[name]), np.uint8)
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


def viper(root: Path, sequences: int, frames: int, size: tuple[int, int]) -> None:
    for sequence in range(1, sequences + 1):
        for frame in range(8, 8 + frames):  # 8, 9, 10, 11: one of them is in the published lists
            name = f"{sequence:03d}/{sequence:03d}_{frame:05d}"
            write_image(root / f"train/img/{name}.jpg", picture(*size, frame))
            write_label(root / f"train/cls/{name}.png", raw_label("viper", *size))


def bdd(root: Path, sequences: int, frames: int, size: tuple[int, int]) -> None:
    for sequence in range(sequences):
        video = f"0000f77c-6257be5{sequence}"
        for frame in range(308 - frames, 308):
            write_image(root / f"train/images/{video}_{frame}.jpg", picture(*size, frame))
        write_label(root / f"train/labels/{video}_307.png", raw_label("bdd", *size))


def gta5(root: Path, sequences: int, frames: int, size: tuple[int, int]) -> None:
    for number in range(1, sequences * frames + 1):
        write_image(root / f"images/{number:05d}.png", picture(*size, number))
        label = raw_label("gta5", *size)
        write_palette(root / f"labels/{number:05d}.png", label, picture(1, 256, 0)[:, 0])


def synthia_rand(root: Path, sequences: int, frames: int, size: tuple[int, int]) -> None:
    for number in range(sequences * frames):
        write_image(root / f"RGB/{number:07d}.png", picture(*size, number))
        raw = raw_label("synthia_rand", *size).astype(np.uint16)
        write_label(root / f"GT/LABELS/{number:07d}.png", np.stack((raw, raw + 1000, raw * 0 + 7), -1))


def cityscapes_stills(root: Path, sequences: int, frames: int, size: tuple[int, int]) -> None:
    for sequence in range(sequences * frames):
        name = f"train/ulm/ulm_{sequence:06d}_000019"
        write_image(root / f"leftImg8bit/{name}_leftImg8bit.png", picture(*size, sequence))
        label = root / f"gtFine/{name}_gtFine_labelIds.png"
        write_label(label, raw_label("cityscapes", *size))
        label.with_name(label.name.replace("labelIds", "color")).write_bytes(b"not used")


def folder(root: Path, sequences: int, frames: int, size: tuple[int, int]) -> None:
    for sequence in range(sequences):
        for frame in range(frames):
            name = f"drive {sequence}/ünder.way {frame:03d}"
            write_image(root / f"images/{name}.png", picture(*size, frame))
            write_label(root / f"masks/{name}.png", raw_label("folder", *size))
    lines = [f"{raw}: {'ignore' if name == VOID else name}" for raw, name in RAW_NAMES["folder"].items()]
    (root / "classes.yaml").write_text("\n".join(lines))


WRITERS: dict[str, Callable[[Path, int, int, tuple[int, int]], None]] = {
    "synthia_seq": synthia,
    "viper": viper,
    "cityscapes_seq": cityscapes,
    "bdd": bdd,
    "camvid": camvid,
    "gta5": gta5,
    "synthia_rand": synthia_rand,
    "cityscapes": cityscapes_stills,
    "folder": folder,
}

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def raw_names() -> dict[str, dict[int, str]]:
    """``raw id -> class name`` of every data set as ``write_tree`` writes it."""
    return RAW_NAMES


@pytest.fixture
def write_tree(tmp_path: Path) -> Write:
    """``write_tree(name, sequences=2, frames=4, size=(48, 32))`` -> root."""

    def write(name: str, sequences: int = 2, frames: int = 4, size: tuple[int, int] = (48, 32)) -> Path:
        root = tmp_path / name
        WRITERS[name](root, sequences, frames, size)
        return root

    return write
