"""VIPER: driving in a game with a label for every frame, 1920x1080.

Source: the Visual Perception Benchmark, 77 train and 47 val sequences. Images are JPEG, labels 8-bit PNG of class ids.
The published lists (DA-VSN, TPS, STCL, UnifiedVideoDA) take the frames 10, 20, 30, ... of each train sequence: 13,367.
The bonnet of the car that films is labelled car (24); the benchmark ignores it.
"""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from stcl.data.base import IMAGE_SUFFIXES, VideoDataset
from stcl.data.io import Label
from stcl.data.listing import Key
from stcl.types import FrameRef

_NAME = r"(?P<sequence>\d+)_(?P<frame>\d+)"
_CAR = 24
_EVERY = 10


class Viper(VideoDataset):
    """The packages of the download may be there in part: offsets of a clip count neighbouring frames that exist."""

    name = "viper"
    layout = (
        "<root>/<split>/img/<sequence>/<sequence>_<frame>.jpg (or .png) with "
        "<root>/<split>/cls/<sequence>/<sequence>_<frame>.png"
    )
    splits = ("train", "val")
    native_size = (1920, 1080)
    citation = "Richter et al., Playing for Benchmarks, ICCV 2017"

    def find_frames(self) -> Iterable[FrameRef]:
        """Frames of every sequence folder."""
        for folder in self.folders(self.folder(self.split, "img")):
            for match, path in self.files(folder, _NAME, IMAGE_SUFFIXES):
                yield FrameRef(match["sequence"], int(match["frame"]), path)

    def find_labels(self) -> Iterable[tuple[Key, Path]]:
        """Label files of every sequence folder."""
        for folder in self.folders(self.folder(self.split, "cls")):
            for match, path in self.files(folder, _NAME, (".png",)):
                yield (match["sequence"], int(match["frame"])), path

    def benchmark_frames(self, index: list[FrameRef]) -> list[FrameRef]:
        """The frames whose number is a multiple of ten."""
        return [ref for ref in index if ref.number % _EVERY == 0]

    def clean_label(self, raw: Label) -> Label:
        """Without the ego vehicle: the connected car pixels that the bottom centre pixel is one of become id 0."""
        height, width = raw.shape
        if raw[-1, width // 2] != _CAR:
            return raw
        cars = (raw == _CAR).astype(np.uint8)
        cv2.floodFill(cars, None, (width // 2, height - 1), 2, flags=8)  # corners connect, as published
        cleaned = raw.copy()
        cleaned[cars == 2] = 0
        return cleaned
