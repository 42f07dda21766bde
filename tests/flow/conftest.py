"""Two textured frames whose motion is known, and a rendered tree's exact flow for them."""

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from stcl.files import encode_flow, exact_flow_path, write_atomic
from stcl.types import FrameRef


class Scene(NamedTuple):
    """``image_a[y, x] == image_b[y + v, x + u]`` away from the border."""

    a: FrameRef
    b: FrameRef
    image_a: np.ndarray
    image_b: np.ndarray
    u: int
    v: int


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    smooth = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (1.5, 4, 10))
    return np.clip(128 + 60 * smooth, 0, 255).astype(np.uint8)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """The content moves 5 pixels right and 3 down from a to b; an exact flow file says so."""
    u, v = 5, 3
    image_a = texture(96, 128)
    image_b = np.roll(image_a, (v, u), (0, 1))
    a = FrameRef("clip_0000", 1, tmp_path / "tree/clip_0000/rgb/000001.png")
    b = FrameRef("clip_0000", 0, tmp_path / "tree/clip_0000/rgb/000000.png")
    flow = np.stack((np.full((96, 128), u, np.float32), np.full((96, 128), v, np.float32)))
    write_atomic(exact_flow_path(tmp_path / "tree", a.image, b.image), encode_flow(flow, np.ones((96, 128), bool)))
    return Scene(a, b, image_a, image_b, u, v)
