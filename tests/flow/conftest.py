"""Frames whose motion is known, textured and of a street, and every source of flow made ready for them."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch

from stcl.files.pictures import encode_flow
from stcl.files.writing import exact_flow_path, write_atomic
from stcl.flow import SignedFlow, get_flow
from stcl.twinstreets import StreetClip, get_style
from stcl.types import FrameRef


class Scene(NamedTuple):
    """``image_a[y, x] ~ image_b[y + v, x + u]`` with ``flow[:, y, x] = (u, v)``, where it is not ``occluded``."""

    a: FrameRef
    b: FrameRef
    image_a: np.ndarray
    image_b: np.ndarray
    flow: np.ndarray
    occluded: np.ndarray

    @property
    def pair(self) -> tuple[FrameRef, FrameRef, np.ndarray, np.ndarray]:
        """What a provider is called with."""
        return self[:4]


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    smooth = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (1.5, 4, 10))
    return np.clip(128 + 60 * smooth, 0, 255).astype(np.uint8)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """The content moves 5 pixels right and 3 down from a to b."""
    image_a = texture(96, 128)
    image_b = np.roll(image_a, (3, 5), (0, 1))
    flow = np.stack((np.full((96, 128), 5, np.float32), np.full((96, 128), 3, np.float32)))
    return placed(Scene(*frames(tmp_path), image_a, image_b, flow, np.zeros((96, 128), bool)))


@pytest.fixture
def street(rendered: Scene, tmp_path: Path) -> Scene:
    """Two frames of a street from a moving car: motion of every direction and length."""
    return placed(rendered._replace(**dict(zip("ab", frames(tmp_path), strict=True))))


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    clip = StreetClip(get_style("clean"), 1, (256, 128), frames=11)
    flow, occluded = clip.flow(10, 9)
    refs = frames(tmp_path_factory.mktemp("unused"))
    return Scene(*refs, clip.render(10).image, clip.render(9).image, flow, occluded)


def frames(root: Path) -> tuple[FrameRef, FrameRef]:
    folder = root / "tree/clip_0000/rgb"
    return FrameRef("clip_0000", 1, folder / "000001.png"), FrameRef("clip_0000", 0, folder / "000000.png")


def placed(scene: Scene) -> Scene:
    """The scene with its flow beside it, as exact flow of a rendered tree and as a file that was published."""
    tree = scene.a.image.parents[2]
    write_atomic(exact_flow_path(tree, scene.a.image, scene.b.image), encode_flow(scene.flow, ~scene.occluded))
    (tree.parent / "flow").mkdir()
    np.save(tree.parent / "flow/000001_int16_x10.npy", np.rint(scene.flow.transpose(1, 2, 0) * 10).astype(np.int16))
    return scene


@pytest.fixture
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., SignedFlow]:
    """``make(name, **settings)``: a provider that knows the scene."""

    def build(name: str, **settings: Any) -> SignedFlow:
        if name == "raft":
            request.getfixturevalue("torchvision")
        if name == "files":
            settings.setdefault("folder", tmp_path / "flow")
        return get_flow(name, **settings)

    return build


class FakeRaft(torch.nn.Module):
    """Refuses what torchvision's network would refuse, and answers with DIS: iterates, of which the last is right."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """Shapes of the images of each call."""
        return [tuple(image.shape) for image, _ in self.seen]

    def forward(self, image1: torch.Tensor, image2: torch.Tensor, num_flow_updates: int = 12) -> list[torch.Tensor]:
        assert image1.shape == image2.shape and image1.dtype == torch.float32 and not torch.is_grad_enabled()
        assert all(side % 8 == 0 and side >= 128 for side in image1.shape[-2:])
        assert image1.device == self.scale.device and not self.training
        self.seen.append((image1, image2))
        images = [((image[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() for image in (image1, image2)]
        ref = FrameRef("", 0, Path())
        flow = torch.from_numpy(get_flow("dis")(ref, ref, *images))[None] * self.scale
        return [*[flow * 0] * (num_flow_updates - 1), flow]


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A package of that name with the parts that are used; ``made`` are the networks that it has built."""
    made: list[FakeRaft] = []

    def builder(size: str) -> Callable[..., FakeRaft]:
        def build(*, weights: object = None, progress: bool = True) -> FakeRaft:
            assert weights.url == f"https://weights/{size}.pth" and not progress
            made.append(FakeRaft())
            return made[-1]

        return build

    package, models, flows = (ModuleType(f"torchvision{part}") for part in ("", ".models", ".models.optical_flow"))
    package.__version__, package.models, models.optical_flow = "0.99", models, flows  # type: ignore[attr-defined]
    for size in ("large", "small"):
        setattr(flows, f"raft_{size}", builder(size))
        setattr(
            flows,
            f"Raft_{size.title()}_Weights",
            SimpleNamespace(DEFAULT=SimpleNamespace(url=f"https://weights/{size}.pth")),
        )
    for module in (package, models, flows):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return SimpleNamespace(made=made)
