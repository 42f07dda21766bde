"""What each network costs: parameters, arithmetic, memory and time of a training step and of inference.

    python benchmarks/networks.py [--network NAME ...] [--size WIDTHxHEIGHT ...] [--timed GMACS] [--rounds 3]

``NAME`` is a key of :data:`NETWORKS`: a backbone with the head that suits it. One clip, float32. Multiply-accumulates
are those of one frame through backbone and head, counted by torch on tensors without contents; memory is counted as in
memory.py, so neither needs the memory. The training step is that of ``source_only`` (a frame with gradient, the one
before without, optimiser, weight average); inference is one frame without gradient. Seconds are medians of the
processor's time on this machine (all threads together, so that other programs matter little), of networks with at most
``--timed`` GMACs a frame (0: of none); a larger one is counted only.

Ends with one line of JSON: ``{"rows": [{"network", "size", "parameters", "gmacs", "train_bytes", "inference_bytes",
"train_seconds", "inference_seconds"}], ..}``; seconds are null where they were not measured.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median

import torch
from measure import finish_line, machine
from memory import GIGABYTE, LiveBytes, batch_for, counted, driver_for, empty_out, method_for
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from stcl.engine.config import load_settings
from stcl.engine.networks import untrained
from stcl.engine.settings import Settings
from stcl.resources import config_path
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


def settings_of(name: str, size: tuple[int, int]) -> Settings:
    """A plain training of one clip at ``size (width, height)``."""
    backbone, head, auxiliary, backbone_settings = NETWORKS[name]
    values = {
        "network.backbone": backbone,
        "network.head": head,
        "network.auxiliary": str(auxiliary).lower(),
        "network.backbone_settings": backbone_settings,
        "source.size": str(list(size)),
        "target.size": str(list(size)),
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


def seconds_of(settings: Settings, size: tuple[int, int], rounds: int) -> tuple[float, float]:
    """Median processor seconds of a training step and of one frame's inference, after one of each."""
    method = method_for(settings)
    driver, batch = driver_for(method, settings), batch_for(method, settings)
    network, frame = method.evaluated.eval(), torch.rand(1, 3, size[1], size[0])

    def infer() -> None:
        with torch.no_grad():
            network(FramePair(frame))

    def seconds(run: Callable[[], None]) -> float:
        started = time.process_time()
        run()
        return time.process_time() - started

    ways: tuple[Callable[[], None], ...] = (lambda: driver.step(batch), infer)
    turns = [[seconds(run) for run in ways] for _ in range(rounds + 1)][1:]
    train, inference = (median(times) for times in zip(*turns, strict=True))
    return train, inference


def row_of(name: str, size: tuple[int, int], timed: float, rounds: int) -> Row:
    """One line of the table."""
    settings = settings_of(name, size)
    parameters, gmacs = arithmetic(settings, size)
    train = counted(settings)[1]
    row = Row(name, [*size], parameters, round(gmacs, 2), train, inference_bytes(settings, size))
    if gmacs > timed:
        return row
    step, frame = seconds_of(settings, size, rounds)
    return replace(row, train_seconds=step, inference_seconds=frame)


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
            *(f"{size / GIGABYTE:.2f} GB" for size in (row.train_bytes, row.inference_bytes)),
            *("–" if seconds is None else f"{seconds:.2f} s" for seconds in (row.train_seconds, row.inference_seconds)),
        )
    return table


def size_from(text: str) -> tuple[int, int]:
    """``1024x512 -> (1024, 512)``."""
    width, height = text.split("x")
    return int(width), int(height)


def main(argv: Sequence[str] | None = None) -> int:
    """Count and measure, show, and end with a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=[*NETWORKS], metavar="NAME")
    parser.add_argument("--size", nargs="+", type=size_from, default=[(512, 256)], metavar="WIDTHxHEIGHT")
    parser.add_argument("--timed", type=float, default=30.0, metavar="GMACS")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    wanted = [(name, size) for size in options.size for name in options.network]
    console = Console(width=120)
    progress = track(wanted, description="networks", console=Console(stderr=True))
    rows = [row_of(name, size, options.timed, options.rounds) for name, size in progress]
    console.print(table_of(rows))
    return finish_line({"rows": [asdict(row) for row in rows], **machine("transformers")})


if __name__ == "__main__":
    raise SystemExit(main())
