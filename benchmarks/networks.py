"""What each network costs: parameters, arithmetic, memory and time of a training step and of inference.

    python benchmarks/networks.py [--network NAME ...] [--size WIDTHxHEIGHT ...] [--device cpu|cuda]
        [--precision 32-true|bf16-mixed] [--timed GMACS] [--rounds 3]

``NAME`` is a key of :data:`NETWORKS`: a backbone with the head that suits it. One clip. Multiply-accumulates
are those of one frame through backbone and head, counted by torch on tensors without contents. The training step is
that of ``source_only`` (a frame with gradient, the one before without, optimiser, weight average); inference is one
frame without gradient. On a CPU, float32 unless told otherwise, memory is counted as in memory.py, without needing it,
and seconds are medians of the processor's time (all threads together, so that other programs matter little). On a GPU,
bf16-mixed unless told otherwise, memory is the peak of torch's allocator and seconds are medians of the time that
passes. Networks with more than ``--timed`` GMACs a frame are counted only: 30 unless told otherwise on a CPU, without
limit on a GPU.

Ends with one line of JSON: ``{"rows": [{"network", "size", "parameters", "gmacs", "train_bytes", "inference_bytes",
"train_seconds", "inference_seconds"}], ..}``; seconds are null where they were not measured.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median

import torch
from measure import finish, finish_line, machine, say
from memory import GIGABYTE, LiveBytes, batch_for, counted, driver_for, empty_out, method_for
from rich.console import Console
from rich.table import Table
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from stcl.resources import config_path
from stcl.training.config import load_settings
from stcl.training.networks import untrained
from stcl.training.settings import Settings
from stcl.types import FramePair

NETWORKS: dict[str, tuple[str, str, bool, str]] = {
    "small": ("small", "stcl", True, "{width: 24}"),
    "resnet18": ("resnet18", "stcl", True, "null"),
    "resnet50": ("resnet50", "stcl", True, "null"),
    "resnet101": ("resnet101", "stcl", True, "null"),
    **{f"mit_b{size}": (f"mit_b{size}", "mlp", False, "null") for size in (0, 1, 2, 3, 4, 5)},
    "mit_b0+daformer": ("mit_b0", "daformer", False, "null"),
    "mit_b5+daformer": ("mit_b5", "daformer", False, "null"),
    **{f"dinov2_{size}": (f"dinov2_{size}", "mlp", False, "null") for size in ("small", "base", "large")},
    "dinov2_small, frozen": ("dinov2_small", "mlp", False, "{frozen: true}"),
}
"""Backbone, head, auxiliary head, settings of the backbone."""


@dataclass(frozen=True)
class Row:
    """What one network costs at one size."""

    network: str
    size: list[int]
    parameters: int
    gmacs: float
    train_bytes: int
    inference_bytes: int
    train_seconds: float | None = None
    inference_seconds: float | None = None


@dataclass(frozen=True)
class Way:
    """How to measure: device, precision, the largest GMACs to time, and how often."""

    device: str
    precision: str
    timed: float
    rounds: int


def settings_of(name: str, size: tuple[int, int], precision: str = "32-true") -> Settings:
    """A plain training of one clip at ``size (width, height)``."""
    backbone, head, auxiliary, backbone_settings = NETWORKS[name]
    values = {
        "network.backbone": backbone,
        "network.head": head,
        "network.auxiliary": str(auxiliary).lower(),
        "network.backbone_settings": backbone_settings,
        "source.size": str(list(size)),
        "target.size": str(list(size)),
        "training.precision": precision,
    }
    words = [word for key, value in values.items() for word in (f"--{key}", value)]
    return load_settings(config_path("synthia_seq-cityscapes_seq/source_only"), words)


def arithmetic(settings: Settings, size: tuple[int, int]) -> tuple[int, float]:
    """Parameters, and 10^9 multiply-accumulates of one frame."""
    with torch.device("meta"):
        network = untrained(settings).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(FramePair(torch.rand(1, 3, size[1], size[0])))
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() / 2e9


def inference_bytes(settings: Settings, size: tuple[int, int]) -> int:
    """Most bytes alive while one frame passes, the network's own among them."""
    network = untrained(settings).eval()
    with FakeTensorMode() as mode, torch.no_grad():
        empty_out(network, mode)
        frame = torch.rand(1, 3, size[1], size[0])
        with LiveBytes() as live:
            for tensor in (*network.parameters(), *network.buffers(), frame):
                live.see(tensor)
            network(FramePair(frame))
    return live.peak


def measured(row: Row, settings: Settings, way: Way) -> Row:
    """The row with median seconds of a training step and of one frame's inference, after one of each.

    On a GPU with the peak bytes of each, too; those of inference without the optimiser, which lives beside it here.
    """
    device = torch.device(way.device)
    method = method_for(settings).to(device)
    driver, batch = driver_for(method, settings), batch_for(method, settings)
    network, frame = method.evaluated.eval(), torch.rand(1, 3, row.size[1], row.size[0], device=device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def infer() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=way.precision == "bf16-mixed"):
            network(FramePair(frame))

    def measure(run: Callable[[], None]) -> tuple[float, int, int]:
        """Seconds, and on a GPU bytes before and at most."""
        finish()
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = clock()
        run()
        finish()
        return clock() - started, before, torch.cuda.max_memory_allocated() if device.type == "cuda" else 0

    ways: tuple[Callable[[], None], ...] = (lambda: driver.step(batch), infer)
    turns = [[measure(run) for run in ways] for _ in range(way.rounds + 1)][1:]
    train, inference = zip(*turns, strict=True)
    times = [median(seconds for seconds, *_ in turn) for turn in (train, inference)]
    row = replace(row, train_seconds=times[0], inference_seconds=times[1])
    if device.type == "cpu":
        return row
    own = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers(), frame))
    beside = max(most - before for _, before, most in inference)
    return replace(row, train_bytes=max(most for *_, most in train), inference_bytes=own + beside)


def row_of(name: str, size: tuple[int, int], way: Way) -> Row:
    """One line of the table."""
    settings = settings_of(name, size, way.precision)
    parameters, gmacs = arithmetic(settings, size)
    row = Row(name, [*size], parameters, round(gmacs, 2), 0, 0)
    if way.device == "cpu":
        row = replace(row, train_bytes=counted(settings)[1], inference_bytes=inference_bytes(settings, size))
    return measured(row, settings, way) if gmacs <= way.timed else row


def table_of(rows: Sequence[Row]) -> Table:
    """Rows for people."""
    memory, time = ("train, memory", "inference, memory"), ("train, time", "inference, time")
    table = Table("network", "size", "parameters", "GMACs", *memory, *time)
    for row in rows:
        table.add_row(
            row.network,
            "x".join(map(str, row.size)),
            f"{row.parameters / 1e6:.1f} M",
            f"{row.gmacs:.1f}",
            *(f"{size / GIGABYTE:.2f} GB" if size else "–" for size in (row.train_bytes, row.inference_bytes)),
            *map(shown, (row.train_seconds, row.inference_seconds)),
        )
    return table


def shown(seconds: float | None) -> str:
    """Seconds, or milliseconds where there are few."""
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def size_from(text: str) -> tuple[int, int]:
    """``1024x512 -> (1024, 512)``."""
    width, height = text.split("x")
    return int(width), int(height)


def main(argv: Sequence[str] | None = None) -> int:
    """Count and measure, show, and end with a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=[*NETWORKS], metavar="NAME")
    parser.add_argument("--size", nargs="+", type=size_from, default=[(512, 256)], metavar="WIDTHxHEIGHT")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--timed", type=float, metavar="GMACS")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    on_gpu = options.device == "cuda"
    timed = options.timed if options.timed is not None else math.inf if on_gpu else 30.0
    way = Way(options.device, options.precision or ("bf16-mixed" if on_gpu else "32-true"), timed, options.rounds)
    torch.backends.cudnn.benchmark = True  # as training
    wanted = [(name, size) for size in options.size for name in options.network]
    console = Console(width=120)
    rows = []
    for number, (name, size) in enumerate(wanted, 1):
        say(f"{number} of {len(wanted)}: {name} at {size[0]}x{size[1]}")
        rows.append(row_of(name, size, way))
    console.print(table_of(rows))
    return finish_line(
        {
            "rows": [asdict(row) for row in rows],
            "device": way.device,
            "precision": way.precision,
            **machine("transformers"),
        }
    )


if __name__ == "__main__":
    raise SystemExit(main())
