"""One STCL training step: ours beside the published one (yardstick.py), in time, arithmetic, memory and gradients.

    python benchmarks/train_step.py [--size builtin|published] [--device auto|cpu|cuda] [--steps N]
        [--yardstick-steps N] [--precision 32-true|bf16-mixed] [--compile] [--part-steps N] [--gradient-steps N]
        [--threads N] [--published-code DIR] [--group.key value ...]

``builtin`` is ``twinstreets/stcl_published`` (256x128, 4 clips), ``published`` is
``synthia_seq-cityscapes_seq/stcl_published`` (ResNet-101, 1280x640 and 1024x512, 1 clip): all parts of the paper, with
an averaged teacher and weighted pseudo labels, both in the middle of their schedule, so that every term takes part.
Batches are synthetic, bytes in the host's memory; copying them to the device belongs to the step. Ours runs as training
runs it, channels_last, bf16-mixed on a GPU and float32 on a CPU unless told otherwise. The yardstick is float32 in
PyTorch's ordinary format (on a GPU its convolutions may use TF32, PyTorch's default). The two take turns in one
process; medians are reported.

Parts are measured in further steps, in which functions are watched from outside. Arithmetic is counted by torch's
FlopCounterMode in one step of ours, forward and backward, and set in relation to a large square matrix product measured
in the same run (bf16 on a GPU; float32 on a CPU, by the faster of PyTorch's two libraries). Memory is the peak that
torch allocated on a GPU for ours (beside the yardstick's weights); on a CPU it is the growth of the process's largest
resident size up to the first steps.

Gradients are compared in float32 from the same start, on the same batches, with the same draws, over several steps of
the memories (other clips, long-tail bank), the weights being held. Batch norm uses STORED statistics there, in student
and teacher: with those of the batch the two would differ by design, since ours normalises the frames of a domain
together, the published step those of each forward pass alone. Dropout is off for the same reason.
``max_gradient_difference`` is the largest absolute difference in any parameter tensor, relative to the largest absolute
gradient of that tensor. The frames of the two differ by rounding (1e-6), and where that carries an activation over the
kink of a ReLU, a gradient jumps (by per cents in a ResNet-101 with random weights); ``max_smooth_gradient_difference``
is the same figure with GELU in place of ReLU, which has no kinks. On a CPU ``published`` compares clips of a quarter of
the width and height.

With ``--published-code DIR``, a checkout of the published repository, its network is imported from there and timed,
forward and backward on one source pair, beside ours.

Ends with one line of JSON: ``ratio`` (yardstick / ours), ``step_seconds``, ``yardstick_seconds``, ``step_flop``,
``fraction_of_matmul_rate``, ``max_gradient_difference``, ``max_loss_difference``, ``memory_bytes``, ``parts``, ... What
was not measured is null. ``hours_for_40000_steps_extrapolated`` is the median step times 40,000, nothing more.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from measure import finish_line, machine, matmul_rate, median_seconds, say
from published_network import contestants
from rich.console import Console
from rich.table import Table
from stepping import Driver, Parts, settle, synthetic_batch
from torch.utils.flop_counter import FlopCounterMode
from yardstick import Draws, PublishedStep

import stcl
import stcl.methods.stcl as algorithm
from stcl.errors import SettingError, StclError
from stcl.methods import DomainBatch
from stcl.methods.stcl import STCL
from stcl.models import recalibrate
from stcl.training import loop
from stcl.training.networks import build_method, prepare_networks
from stcl.training.settings import Settings
from stcl.types import FramePair, VideoClip

WARM_UP = 2
BATCHES = 4
"""Different batches that the steps go through in turn."""
PREPARATION, TEACHER, MIXING = "copy, colours, flip, augmentation", "teacher, pseudo labels", "mixing"
STUDENT, BACKWARD, OPTIMISER, REST = "student forward", "backward", "optimiser, average", "losses, alignment, rest"


@dataclass(frozen=True)
class Size:
    """A configuration to measure; gradients are compared on clips ``shrink`` times smaller, where that is needed."""

    config: str
    overrides: tuple[str, ...]
    shrink: int = 1


SIZES = {
    "builtin": Size(
        "twinstreets/stcl_published",
        ("--method.teacher.kind=ema", "--method.weighting=share", "--method.threshold=0.9"),
    ),
    # a network with random weights is sure of nothing: the thresholds lie where its probabilities do
    "published": Size(
        "synthia_seq-cityscapes_seq/stcl_published",
        (
            "--method.teacher.kind=ema",
            "--method.weighting=share",
            "--method.threshold=0.1",
            "--method.sequence_fusion.confidence=0.1",
        ),
        shrink=4,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure everything and print it."""
    options, overrides = parse(argv)
    size = SIZES[options.size]
    device = torch.device(options.device)
    precision = options.precision or ("bf16-mixed" if device.type == "cuda" else "32-true")
    fixed = [f"--training.precision={precision}", f"--training.compile={str(options.compile).lower()}"]
    try:
        settings = stcl.load_settings(size.config, [*size.overrides, *fixed, *overrides])
        result = measure(settings, device, options, size.shrink)
    except StclError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    about = {
        "size": options.size,
        "config": size.config,
        "device": device.type,
        "precision": settings.training.precision,
    }
    memory = "peak allocated" if device.type == "cuda" else "growth of the largest resident size in the first steps"
    how = {"precision": settings.training.precision, "compile": settings.training.compile}
    result = {**about, **how, "memory_is": memory, **result}
    result["machine"] = machine("kornia", "scikit-image") | {"stcl": stcl.__version__}
    show(result)
    return finish_line(result)


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Options, and overrides of the configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="builtin")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--compile", action="store_true", help="compile our networks")
    parser.add_argument("--steps", type=int, default=10, help="measured steps of ours")
    parser.add_argument("--yardstick-steps", type=int, help="as many as of ours unless told; 0 leaves it out")
    parser.add_argument("--part-steps", type=int, default=3, help="further steps in which parts are measured")
    parser.add_argument("--gradient-steps", type=int, default=2, help="steps whose gradients are compared")
    parser.add_argument("--threads", type=int, help="of the host's arithmetic; all cores unless told")
    parser.add_argument("--published-code", type=Path, metavar="DIR", help="checkout of the published repository")
    options, overrides = parser.parse_known_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.yardstick_steps is None:
        options.yardstick_steps = options.steps
    return options, overrides


def measure(settings: Settings, device: torch.device, options: argparse.Namespace, shrink: int) -> dict[str, Any]:
    """Every figure of one configuration on one device."""
    before = peak_bytes(device)
    method = make_method(settings, device)
    batches = [synthetic_batch(method, settings, seed) for seed in range(BATCHES)]
    start = settings.training.steps // 2
    yardstick = PublishedStep(method, settings.training.steps) if options.yardstick_steps else None
    prepare_networks(method, settings.training)
    torch.backends.cudnn.benchmark = not settings.training.deterministic  # as training; serves the yardstick, too
    say("first steps")
    ours = Driver(method, settings, start)
    for batch in batches[:WARM_UP]:
        ours.step(batch)
    memory = peak_bytes(device) - before
    say("steps of both, by turns")
    result = race(ours, yardstick, batches, options) | {"memory_bytes": memory}
    say(f"{result['step_seconds']:.4f} s a step; parts of both")
    result["parts"] = {"ours": parts_of_ours(ours, batches[: options.part_steps])}
    if yardstick is not None:
        result["parts"]["yardstick"] = parts_of_yardstick(yardstick, start, batches[: options.part_steps])
    say("arithmetic")
    flop = count_flop(Driver(make_method(settings, device), settings, start), batches[0])
    rate = matmul_rate(device)
    result |= {
        "step_flop": flop,
        "flop_per_second": flop / result["step_seconds"],
        "matmul_flop_per_second": rate,
        "fraction_of_matmul_rate": flop / result["step_seconds"] / rate,
        "hours_for_40000_steps_extrapolated": result["step_seconds"] * 40_000 / 3600,
    }
    say("gradients of both")
    result["gradients_shrunk"] = shrink = 1 if device.type == "cuda" else shrink
    losses, gradients = compare(settings, device, options.gradient_steps, shrink)
    with patch.object(F, "relu", lambda features, inplace=False: F.gelu(features)):
        _, smooth = compare(settings, device, options.gradient_steps, shrink)
    names = ("max_loss_difference", "max_gradient_difference", "max_smooth_gradient_difference")
    result |= dict(zip(names, (losses, gradients, smooth), strict=True))
    if options.published_code:
        result |= time_networks(options, settings, batches[0], device)
    return result


def make_method(settings: Settings, device: torch.device) -> STCL:
    """The method on its device, batch norm having seen some frames, as it would have in the middle of a run."""
    method = build_method(settings)
    if not isinstance(method, STCL):
        raise SettingError(f"Only stcl can be measured, not {settings.method_class.__name__}.")
    method = method.to(device)
    frames = [clip.to(device).to_float().frame(0) for clip in synthetic_batch(method, settings, BATCHES).values()]
    recalibrate(method.network, (FramePair(frame) for frame in frames))
    method.average.reset(method.network)
    return method


def compare(
    settings: Settings, device: torch.device, steps: int, shrink: int
) -> tuple[float, float] | tuple[None, None]:
    """Largest differences of losses and gradients between ours and the yardstick; see the module's text."""
    if not steps:
        return None, None
    method = make_method(settings, device)
    method.average.statistics = "running"
    method.step, method.steps = settings.training.steps // 2, settings.training.steps
    yardstick = PublishedStep(method, method.steps)
    method.network.eval()
    yardstick.student.eval()
    losses, gradients = [], []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for seed in range(steps):
            data = synthetic_batch(method, settings, seed, shrink)
            generator = method.step_generator()
            clips: Any = {domain: clip.to(device) for domain, clip in data.items()}  # type: ignore[attr-defined]
            terms = method.losses(*method.prepare_batch(clips, generator), generator)
            method.zero_grad()
            torch.stack(list(terms.values())).sum().backward()
            others = yardstick.gradients(data, Draws.of(method), method.step)
            if terms.keys() != others.keys():
                raise SettingError(f"Loss terms {sorted(terms)} of ours, {sorted(others)} of the yardstick.")
            losses += [float((terms[name].detach() - other).abs() / other.abs()) for name, other in others.items()]
            pairs = zip(method.network.parameters(), yardstick.student.parameters(), strict=True)
            gradients += [
                float((a.grad - b.grad).abs().max() / b.grad.abs().max()) for a, b in pairs if b.grad is not None
            ]
            method.step += 1
    return max(losses), max(gradients)


def race(
    ours: Driver, yardstick: PublishedStep | None, batches: list[DomainBatch], options: argparse.Namespace
) -> dict[str, Any]:
    """Median seconds of both, step by step in turn."""
    device, step = ours.method.device, ours.method.step
    seconds: dict[str, list[float]] = {"ours": [], "yardstick": []}

    def timed(name: str, run: Callable[[], object]) -> None:
        settle(device)
        started = time.perf_counter()
        run()
        settle(device)
        seconds[name].append(time.perf_counter() - started)

    for turn in range(1 + max(options.steps, options.yardstick_steps)):  # the first round only warms up
        batch = batches[turn % len(batches)]
        if turn <= options.steps:
            timed("ours", lambda: ours.step(batch))  # noqa: B023
        if yardstick is not None and turn <= options.yardstick_steps:
            draws = Draws.of(ours.method)
            timed("yardstick", lambda: yardstick.train_step(batch, draws, step + turn))  # noqa: B023
    medians = {name: median(times[1:]) if len(times) > 1 else None for name, times in seconds.items()}
    mine, theirs = medians["ours"], medians["yardstick"]
    return {
        "ratio": theirs / mine if mine and theirs else None,
        "step_seconds": mine,
        "yardstick_seconds": theirs,
        "steps": [len(times[1:]) for times in seconds.values()],
    }


def parts_of_ours(ours: Driver, batches: list[DomainBatch]) -> dict[str, float]:
    """Seconds a step of each part of ours; nothing without batches."""
    method, training, parts = ours.method, ours.training, Parts(ours.method.device)
    table: dict[str, list[tuple[Any, str]]] = {
        PREPARATION: [(VideoClip, "to"), (method, "prepare_batch"), (method, "augment")],
        TEACHER: [(method, "teacher_view"), (method, "label_target")],
        MIXING: [(method.bank, "add"), (method, "draw_patches"), (algorithm, "fuse")],
        STUDENT: [(method, "segment")],
        BACKWARD: [(training.fabric, "backward")],
        OPTIMISER: [
            (loop, "clip_gradients"),
            (training.fabric.strategy, "optimizer_step"),
            (training.schedule, "step"),
            (method.average, "update"),
        ],
    }
    with parts.watch(table, REST):
        for batch in batches:
            ours.step(batch)
    return {part: total / len(batches) for part, total in parts.seconds().items() if batches}


def parts_of_yardstick(yardstick: PublishedStep, step: int, batches: list[DomainBatch]) -> dict[str, float]:
    """The same of the yardstick."""
    parts = Parts(yardstick.device)
    functions = {
        PREPARATION: ("prepare", "augment"),
        TEACHER: ("label",),
        MIXING: ("mix",),
        STUDENT: ("segment",),
        BACKWARD: ("backward",),
        OPTIMISER: ("optimise",),
    }
    table = {part: [(yardstick, name) for name in names] for part, names in functions.items()}
    with parts.watch(table, REST):
        for batch in batches:
            yardstick.train_step(batch, Draws.of(yardstick.method), step)
    return {part: total / len(batches) for part, total in parts.seconds().items() if batches}


def count_flop(ours: Driver, batch: DomainBatch) -> int:
    """Floating-point operations of matrix products and convolutions in one step of ours, which is not compiled."""
    with FlopCounterMode(display=False) as counter:
        ours.step(batch)
    return counter.get_total_flops()


def peak_bytes(device: torch.device) -> int:
    """Peak of the memory allocated on a GPU; on a CPU the largest resident size of the process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def time_networks(
    options: argparse.Namespace, settings: Settings, batch: DomainBatch, device: torch.device
) -> dict[str, Any]:
    """Seconds of the published code's network and of ours on the source's first clip, or why there are none."""
    clip = batch["source"].map(lambda tensor: tensor[:1]).to(device).to_float()
    classes, bf16 = len(settings.space), settings.training.precision == "bf16-mixed"
    try:
        runs = contestants(options.published_code, clip.pair(), clip.label(0).long(), classes, bf16)
        return {"networks": median_seconds(runs, max(1, min(options.steps, 5)))}
    except Exception as error:  # noqa: BLE001 - other people's code may fail in any way, and the table says how
        return {"networks": None, "networks_problem": f"{type(error).__name__}: {error}"}


def show(result: dict[str, Any]) -> None:
    """The table."""
    console, host = Console(), result["machine"]
    where = host["gpu"] if result["device"] == "cuda" else f"{host['processor']}, {host['threads']} threads"
    console.print(f"{result['config']} on {where}; torch {host['torch']}, {host['date']}")
    parts = Table("part", "ours (ms)", "yardstick (ms)", title="Parts, measured in further steps")
    mine, theirs = result["parts"]["ours"], result["parts"].get("yardstick", {})
    for name in (PREPARATION, TEACHER, MIXING, STUDENT, BACKWARD, OPTIMISER, REST):
        parts.add_row(name, number(mine.get(name), 1e3), number(theirs.get(name), 1e3))
    console.print(parts)
    table = Table("what", "figure", title="STCL training step")
    rows = {
        f"step of ours, {result['precision']} (ms, median of {result['steps'][0]})": number(
            result["step_seconds"], 1e3
        ),
        f"step of the yardstick, float32 (ms, median of {result['steps'][1]})": number(
            result["yardstick_seconds"], 1e3
        ),
        "ratio yardstick / ours": number(result["ratio"], digits=2),
        "arithmetic of a step (GFLOP)": number(result["step_flop"], 1e-9),
        "achieved (GFLOP/s)": number(result["flop_per_second"], 1e-9),
        "large matrix product (GFLOP/s)": number(result["matmul_flop_per_second"], 1e-9),
        "share of that": number(result["fraction_of_matmul_rate"], digits=3),
        f"memory (MB, {result['memory_is']})": number(result["memory_bytes"], 1e-6, 0),
        "40,000 steps (hours, extrapolated from the median)": number(result["hours_for_40000_steps_extrapolated"]),
        "largest relative difference of a loss, stored batch-norm statistics": exponent(result, "loss"),
        "largest relative difference of a gradient, likewise": exponent(result, "gradient"),
        "the same without the kinks of ReLU": exponent(result, "smooth_gradient"),
    }
    for name, seconds in (result.get("networks") or {}).items():
        rows[f"{name} forward and backward, one source pair (ms)"] = number(seconds, 1e3)
    if "networks_problem" in result:
        rows["published network"] = f"not run: {result['networks_problem']}"
    for row in rows.items():
        table.add_row(*row)
    console.print(table)


def number(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
    """A number for the table, or a dash."""
    return "-" if value is None else f"{value * scale:.{digits}f}"


def exponent(result: dict[str, Any], what: str) -> str:
    """A difference for the table."""
    value = result[f"max_{what}_difference"]
    return "-" if value is None else f"{value:.1e}"


if __name__ == "__main__":
    sys.exit(main())
