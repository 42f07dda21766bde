"""Training steps without data on disk: synthetic batches, a driver, and a clock for parts.

Used by train_step.py.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from stcl.labels import IGNORE
from stcl.methods import AdaptationMethod, DomainBatch
from stcl.training.devices import make_fabric
from stcl.training.loop import LAG_STEPS, take_step
from stcl.training.settings import Settings
from stcl.training.state import Training
from stcl.types import ClipSpec, VideoClip

BLOCKS = 16
"""Blocks of one class along the height of a synthetic label map."""


def synthetic_clip(spec: ClipSpec, batch: int, size: tuple[int, int], classes: int, seed: int) -> VideoClip:
    """What a loader gives for ``spec``: bytes, labels where asked for, flow of a few pixels.

    Labels are square blocks, a tenth of them ignored; every class has its colour.
    """
    draws = torch.Generator().manual_seed(seed)
    height, width = size
    block = max(4, height // BLOCKS)
    rows, columns = -(-height // block), -(-width // block)

    def enlarge(blocks: Tensor) -> Tensor:
        return blocks.repeat_interleave(block, -1).repeat_interleave(block, -2)[..., :height, :width]

    blocks = torch.randint(0, classes, (batch, len(spec.frames), rows, columns), generator=draws)
    labels = enlarge(blocks)  # (B, T, H, W)
    colours = torch.randint(0, 256, (classes, 3), generator=draws)
    noise = torch.randint(-20, 21, (*labels.shape, 3), generator=draws)
    frames = (colours[labels] + noise).clamp(0, 255).to(torch.uint8).movedim(-1, 2)
    void = enlarge(torch.rand(blocks.shape, generator=draws) < 0.1)
    return VideoClip(
        frames=frames.contiguous(),
        labels=labels.masked_fill(void, IGNORE).to(torch.uint8) if spec.labels else None,
        flows={key: torch.randn(batch, 2, height, width, generator=draws) * 2 for key in spec.flows},
        offsets=spec.frames,
        names=[f"{seed}-{i}" for i in range(batch)],
    )


def synthetic_batch(method: AdaptationMethod, settings: Settings, seed: int, shrink: int = 1) -> DomainBatch:
    """A batch of the settings' sizes, divided by ``shrink``, in the host's memory, page-locked where there is a GPU."""
    clips = {"source": method.source_spec, "target": method.target_spec}
    batch: dict[str, VideoClip] = {}
    for place, (domain, spec) in enumerate(clips.items()):
        assert spec is not None
        width, height = (side // shrink for side in getattr(settings, domain).size)
        spec = spec if domain == "source" else spec.without_labels()
        clip = synthetic_clip(spec, settings.training.batch_size, (height, width), len(method.space), 2 * seed + place)
        batch[domain] = clip.pin_memory() if torch.cuda.is_available() else clip
    return batch  # type: ignore[return-value]


class Driver:
    """Steps of the training loop without data on disk and without checkpoints.

    Args:
        method: on its device; compiled or not.
        settings: of the run.
        step: where the run stands.
    """

    def __init__(self, method: AdaptationMethod, settings: Settings, step: int) -> None:
        options = replace(settings.training, accelerator=method.device.type, devices=1, nodes=1)
        self.method, fabric = method, make_fabric(options)
        self.training = Training(fabric, method, replace(settings, training=options), step)
        self.training.start()
        schedule = self.training.schedule
        schedule.last_epoch = step
        for group, rate in zip(self.training.optimizer.param_groups, schedule.base_lrs, strict=True):
            group["lr"] = rate * method.optimization.factor(step, options.steps)
        method.train()

    def step(self, data: DomainBatch) -> None:
        """One step, the copy of the batch included."""
        take_step(self.training, data)
        self.training.reports.read(LAG_STEPS if self.method.device.type == "cuda" else 0)


def settle(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


class Parts:
    """Seconds of named parts of a step, each without the parts inside it; functions are watched from outside.

    On a GPU the marks are events in its queue, so that nothing waits for the host.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, Any]] = []
        self._inside: list[str] = []

    @contextmanager
    def watch(self, table: dict[str, list[tuple[Any, str]]], rest: str) -> Iterator[None]:
        """Count what the functions ``(owner, name)`` of ``table`` do for their part, and all else for ``rest``."""
        with ExitStack() as stack:
            for part, functions in table.items():
                for owner, name in functions:
                    stack.enter_context(patch.object(owner, name, self._watched(getattr(owner, name), part)))
            self._enter(rest)
            yield
            self._leave()
        settle(self.device)

    def seconds(self) -> dict[str, float]:
        """Total of each part."""
        total: dict[str, float] = defaultdict(float)
        for (part, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            total[part] += start.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - start
        total.pop("", None)
        return dict(total)

    def _watched(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._leave()

        return timed

    def _enter(self, part: str) -> None:
        self._inside.append(part)
        self._mark(part)

    def _leave(self) -> None:
        self._inside.pop()
        self._mark(self._inside[-1] if self._inside else "")

    def _mark(self, part: str) -> None:
        moment: Any = time.perf_counter()
        if self.device.type == "cuda":
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._marks.append((part, moment))
