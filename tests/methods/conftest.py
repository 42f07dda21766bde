"""Small clips, a small network, and one training step at a time without the training loop."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from stcl.labels import IGNORE, get_space
from stcl.methods import AdaptationMethod, DomainBatch, get_method
from stcl.models import build_segmenter
from stcl.types import ClipSpec, VideoClip

SPACE = get_space("synthia_seq-cityscapes_seq")
SIZE = (32, 64)
"""Height and width of the clips."""


def build(name: str, seed: int = 0, start: int = 0, **settings: Any) -> AdaptationMethod:
    """The method called ``name`` around a small network whose weights ``start`` determines."""
    with torch.random.fork_rng():
        torch.manual_seed(start)
        network = build_segmenter(len(SPACE), backbone_settings={"width": 4}, head_settings={"width": 8})
    method = get_method(name)
    return method(network, SPACE, seed, method.Settings(**settings))


def clip_of(spec: ClipSpec, batch: int, size: tuple[int, int], seed: int) -> VideoClip:
    """What a loader gives for ``spec``: bytes, labels where asked for, flow of a few pixels.

    Labels are blocks of 8x8 pixels, a tenth of them ignored; each class has its colour.
    """
    draws = torch.Generator().manual_seed(seed)
    height, width = size
    blocks = torch.randint(0, len(SPACE), (batch, len(spec.frames), height // 8, width // 8), generator=draws)
    classes = blocks.repeat_interleave(8, -1).repeat_interleave(8, -2)  # (B, T, H, W)
    colours = torch.randint(0, 256, (len(SPACE), 3), generator=draws)
    noise = torch.randint(-20, 21, (*classes.shape, 3), generator=draws)
    frames = (colours[classes] + noise).clamp(0, 255).to(torch.uint8).movedim(-1, 2)
    void = torch.rand(blocks.shape, generator=draws) < 0.1
    void = void.repeat_interleave(8, -1).repeat_interleave(8, -2)
    return VideoClip(
        frames=frames.contiguous(),
        labels=classes.masked_fill(void, IGNORE).to(torch.uint8) if spec.labels else None,
        flows={key: torch.randn(batch, 2, height, width, generator=draws) * 2 for key in spec.flows},
        offsets=spec.frames,
        names=[f"{seed}-{i}" for i in range(batch)],
    )


def batch_for(
    method: AdaptationMethod,
    batch: int = 2,
    seed: int = 0,
    size: tuple[int, int] = SIZE,
    source_size: tuple[int, int] | None = None,
) -> DomainBatch:
    """A training batch that serves exactly what ``method`` declares."""
    data: DomainBatch = {"source": clip_of(method.source_spec, batch, source_size or size, 2 * seed)}
    if method.target_spec is not None:
        data["target"] = clip_of(method.target_spec.without_labels(), batch, size, 2 * seed + 1)
    return data


class Run:
    """Optimisation steps of a method as the loop takes them; logged numbers are kept."""

    def __init__(self, method: AdaptationMethod, step: int = 0, steps: int = 10) -> None:
        self.method = method
        method.step, method.steps = step, steps
        self.optimizer, self.schedule = method.make_optimizer()
        method.train()

    @property
    def logged(self) -> dict[str, float]:
        """What the last step logged."""
        return {name: float(value) for name, value in self.method.logged.items()}

    def losses(self, data: DomainBatch) -> dict[str, Tensor]:
        """The method's loss terms at the present step, before any backward pass."""
        generator = self.method.step_generator()
        return self.method.losses(*self.method.prepare_batch(data, generator), generator)

    def step(self, data: DomainBatch) -> dict[str, float]:
        """One optimisation step; what it logged."""
        loss = self.method(data)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.method.average.update(self.method.network, self.method.step)
        self.method.step += 1
        return self.logged


@pytest.fixture
def make_method() -> Callable[..., AdaptationMethod]:
    """``make_method(name, seed=, start=, **settings)``."""
    return build


@pytest.fixture
def make_batch() -> Callable[..., DomainBatch]:
    """``make_batch(method, batch=, seed=, size=, source_size=)``."""
    return batch_for


@pytest.fixture
def make_run() -> type[Run]:
    """``make_run(method, step=, steps=)``."""
    return Run


@pytest.fixture
def make_clip() -> Callable[..., VideoClip]:
    """``make_clip(spec, batch, size, seed)``."""
    return clip_of


@pytest.fixture
def round_trip():
    """``round_trip(module, fresh)``: ``fresh`` with the state of ``module``, through a file that is read as data."""

    def load(module: torch.nn.Module, fresh: torch.nn.Module) -> torch.nn.Module:
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        return fresh

    return load
