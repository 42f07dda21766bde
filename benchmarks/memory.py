"""Peak memory of one training step, for each preset: what fits on which card.

    python benchmarks/memory.py [CONFIG] [--presets NAME ...] [--device count|cuda|cpu] [--group.key value ...]

``CONFIG`` is ``synthia_seq-cityscapes_seq/stcl_published`` unless told otherwise: ResNet-101, 1280x640 and 1024x512,
optimiser SGD, in the middle of its schedule, so that every term takes part. ``none`` among the presets is the
configuration as it stands.

``count`` needs neither a GPU nor the memory: the step runs on tensors without contents (torch's fake tensors), and the
bytes of all that are alive at the same time are added up: networks, gradients, optimiser, weight average, what the
methods remember, and what the forward pass keeps for the backward pass. Not in the count are the driver's own memory,
workspaces of the kernels and what the allocator cannot use; a preset leaves a fifth of its card for them. Operations
are those of a CPU; what autocast leaves in float32 differs a little from a GPU. ``cpu`` counts in a real step, ``cuda``
measures with torch's allocator in a real one.

Ends with one line of JSON: ``{"config", "device", "rows": [{"preset", "batch_size", "precision",
"gradient_checkpointing", "crop", "between_steps_bytes", "peak_bytes", "share_of_card"}], ..}``.
"""

import argparse
import gc
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from measure import finish_line, machine, say
from rich.console import Console
from rich.table import Table
from stepping import Driver, synthetic_clip
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from stcl.methods import AdaptationMethod, DomainBatch
from stcl.resources import config_path, list_presets
from stcl.training.config import load_settings
from stcl.training.networks import build_method, prepare_networks
from stcl.training.settings import Settings

GIGABYTE = 1e9
"""Cards are sold by the binary gigabyte, which is 7 % more, but not all of it is free."""

SHARE = 0.8
"""A preset's step takes at most this share of its card."""

STEADY = ["--method.warmup", "0", "--method.feature_fusion.start", "0", "--method.teacher.kind", "ema"]
"""Every term from the first step on."""


@dataclass(frozen=True)
class Row:
    """Memory of one way to train.

    Attributes:
        between_steps_bytes: what lives from step to step: networks, gradients, optimiser, the method's memory.
        peak_bytes: the most in a step.
        share_of_card: of the preset's card, or None.
    """

    preset: str
    batch_size: int
    precision: str
    gradient_checkpointing: bool
    crop: list[int] | None
    between_steps_bytes: int
    peak_bytes: int
    share_of_card: float | None


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of all storages that operations made and that are still alive; :attr:`peak` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.see, result)
        return result

    def see(self, tensor: torch.Tensor) -> None:
        """Count the tensor's storage until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def batch_for(method: AdaptationMethod, settings: Settings) -> DomainBatch:
    """Bytes of the settings' sizes, as a loader gives them."""
    batch: dict[str, Any] = {}
    specs = {"source": method.source_spec, "target": method.target_spec}
    for domain, spec in specs.items():
        if spec is not None:
            width, height = getattr(settings, domain).size
            wanted = spec if domain == "source" else spec.without_labels()
            clips = settings.training.batch_size
            batch[domain] = synthetic_clip(wanted, clips, (height, width), len(settings.space), seed=0)
    return batch  # type: ignore[return-value]


def method_for(settings: Settings) -> AdaptationMethod:
    """The method as training builds it."""
    method = build_method(settings)
    prepare_networks(method, settings.training)
    return method


def driver_for(method: AdaptationMethod, settings: Settings) -> Driver:
    """Steps of the method, without the checks between them."""
    driver = Driver(method, settings, step=settings.training.steps // 2)
    driver.training.reports = MagicMock()  # which would read what steps report
    return driver


def counted(settings: Settings, fake: bool = True) -> tuple[int, int]:
    """Bytes alive between two steps, and at most within one; ``fake`` tensors have no contents."""
    method, live = method_for(settings), LiveBytes()
    with ExitStack() as stack:
        if fake:
            empty_out(method, stack.enter_context(FakeTensorMode()))
            host = patch.object(FakeTensor, "tolist", lambda tensor: [0.5] * tensor.numel(), create=True)
            stack.enter_context(host)  # where the windows lie is drawn on the host
            stack.enter_context(patch.object(torch.nn.Module, "to", lambda module, *_: module))  # it is there
            stack.enter_context(patch("torch.bincount", empty_counts))
        stack.enter_context(live)
        for tensor in (*method.parameters(), *method.buffers()):
            live.see(tensor)
        driver, batch = driver_for(method, settings), batch_for(method, settings)
        steady = 0
        for _ in range(2):  # the first one makes the optimiser's state
            gc.collect()
            steady, live.peak = live.now, live.now
            driver.step(batch)
    return steady, live.peak


def empty_counts(values: torch.Tensor, minlength: int) -> torch.Tensor:
    """``torch.bincount``, whose size would depend on contents."""
    return torch.empty(minlength, dtype=torch.int64, device=values.device)


def empty_out(network: torch.nn.Module, mode: FakeTensorMode) -> None:
    """Take the contents out of every parameter and buffer."""
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            table.update({name: mode.from_tensor(tensor) for name, tensor in table.items() if tensor is not None})


def measured(settings: Settings) -> tuple[int, int]:
    """The same by the allocator of a GPU."""
    torch.backends.cudnn.benchmark = True  # as training: kernels differ in what they take
    method = method_for(settings).cuda()
    driver, batch = driver_for(method, settings), batch_for(method, settings)
    steady = 0
    for _ in range(3):
        torch.cuda.synchronize()
        steady = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        driver.step(batch)
    torch.cuda.synchronize()
    return steady, torch.cuda.max_memory_allocated()


WAYS: dict[str, Callable[[Settings], tuple[int, int]]] = {
    "count": counted,
    "cpu": lambda settings: counted(settings, fake=False),
    "cuda": measured,
}


def row_of(config: str, preset: str, overrides: Sequence[str], device: str) -> Row:
    """One line of the table; ``preset`` may be ``none``."""
    name = None if preset == "none" else preset
    settings = load_settings(config_path(config), [*STEADY, *overrides], name)
    between, peak = WAYS[device](settings)
    crop = settings.method.preparation.crop
    training = settings.training
    return Row(
        preset,
        training.batch_size,
        training.precision,
        training.gradient_checkpointing,
        None if crop is None else [*crop],
        between,
        peak,
        None if name is None else round(peak / (float(name.removesuffix("gb")) * GIGABYTE), 3),
    )


def table_of(rows: Sequence[Row]) -> Table:
    """Rows for people."""
    table = Table("preset", "batch", "precision", "checkpointing", "crop", "between steps", "peak", "of the card")
    for row in rows:
        share = "–" if row.share_of_card is None else f"{100 * row.share_of_card:.0f} %"
        table.add_row(
            row.preset,
            str(row.batch_size),
            row.precision,
            "yes" if row.gradient_checkpointing else "no",
            "–" if row.crop is None else f"{row.crop[0]}x{row.crop[1]}",
            *(f"{size / GIGABYTE:.2f} GB" for size in (row.between_steps_bytes, row.peak_bytes)),
            share,
            style="red" if row.share_of_card is not None and row.share_of_card > SHARE else None,
        )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Count or measure, show, and end with a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="synthia_seq-cityscapes_seq/stcl_published")
    parser.add_argument("--presets", nargs="+", default=["none", *list_presets()], metavar="NAME")
    parser.add_argument("--device", choices=WAYS, default="count")
    options, overrides = parser.parse_known_args(argv)
    rows = []
    for preset in options.presets:
        say(f"preset {preset}")
        rows.append(row_of(options.config, preset, overrides, options.device))
    Console(width=110).print(table_of(rows))
    return finish_line(
        {"config": options.config, "device": options.device, "rows": [asdict(row) for row in rows], **machine()}
    )


if __name__ == "__main__":
    raise SystemExit(main())
