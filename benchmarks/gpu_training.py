"""Sections of gpu_report.py about training steps: time, arithmetic and memory, by train_step.py and memory.py.

Floating-point operations are counted by torch in one step that is not compiled: matrix products and convolutions of
all its passes, forward and backward, the teacher's forward passes among them.
"""

import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import cycle
from statistics import median
from typing import Any
from unittest.mock import patch

import memory
import torch
import torch.nn.functional as F
from gpu_worker import Report
from measure import device, matmul_rate, seconds_in_a_row
from stepping import Driver, synthetic_batch
from train_step import (
    SIZES,
    compare,
    count_flop,
    make_method,
    parts_of_ours,
    parts_of_yardstick,
    peak_bytes,
    race,
)
from yardstick import PublishedStep

import stcl
from stcl.methods import AdaptationMethod
from stcl.models.compilation import compile_network
from stcl.resources import list_presets
from stcl.training.networks import prepare_networks
from stcl.training.settings import Settings

PRESETS = ("24gb", "80gb")
VIT = "synthia_seq-cityscapes_seq-vit/stcl_published"
TINY = ("--source.size=[96,48]", "--target.size=[64,32]", "--training.batch_size=1", "--method.preparation.crop=null")
TINY_CNN = (
    *TINY,
    "--network.backbone=small",
    "--network.backbone_settings={width: 8}",
    "--network.head_settings={width: 8}",
    "--method.feature_fusion.stage=decode4",
    "--training.precision=32-true",
)
TINY_MEMORY = (*TINY_CNN, "--method.feature_fusion.stage=null", "--method.alignment.form=null")
TINY_VIT = (*TINY, "--network.backbone=mit_b0", "--network.head_settings={width: 8}")

Figures = Mapping[str, Any]


def published_step(report: Report) -> None:
    """The published CNN's step."""
    size = SIZES["published"]
    steps(report, size.config, [*size.overrides, *(TINY_CNN if report.tiny else ())])


def vit_step(report: Report) -> None:
    """The published ViT's step, with random weights."""
    steps(report, VIT, [*SIZES["published"].overrides, "--network.weights=null", *(TINY_VIT if report.tiny else ())])


def steps(report: Report, config: str, overrides: list[str]) -> None:
    """Every preset as it is, then every preset compiled, which takes minutes."""
    flop: dict[str, int] = {}
    for compiled in (False, True):
        for preset in PRESETS[:1] if report.tiny else PRESETS:
            load = partial(stcl.load_settings, config, overrides, preset)
            name = f"{preset}, compiled" if compiled else preset
            report.part(name, lambda load=load, preset=preset: step(report, load(), preset, compiled, flop))  # noqa: B023


def step(report: Report, settings: Settings, preset: str, compiled: bool, flop: dict[str, int]) -> Figures:
    """Figures of one way to train; ``flop`` keeps what was counted for a preset."""
    report.doing("making networks and clips")
    where, training = device(), settings.training
    torch.backends.cudnn.benchmark = True  # as training
    method = make_method(settings, where)
    prepare_networks(method, training)
    batches = [synthetic_batch(method, settings, seed) for seed in range(2)]
    driver, turns = Driver(method, settings, training.steps // 2), cycle(batches)
    if preset not in flop:
        report.doing("counting operations")
        flop[preset] = count_flop(driver, batches[0])
    figures: dict[str, Any] = {"clips": training.batch_size, "precision": training.precision, "flop": flop[preset]}
    with warnings_of("stcl.models.compilation") as warnings:
        if compiled:
            compile_anew(method, report.tiny)
        report.doing("compiling, first steps" if compiled else "first steps", **figures)
        first = seconds_in_a_row(lambda: driver.step(next(turns)), 1 if report.tiny else 3)
        if warnings:
            raise RuntimeError(f"it ran without a compiler: {warnings[0]}")
    count = 1 if report.tiny else max(3, min(20, int(min(10.0, report.left / 3) / first[-1])))
    report.doing(f"{count} steps of about {first[-1]:.3f} s", **figures, step_seconds=first[-1])
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_in_a_row(lambda: driver.step(next(turns)), count)
    figures |= {"step_seconds": median(seconds), "fastest_seconds": min(seconds), "slowest_seconds": max(seconds)}
    figures |= {"steps": count, "peak_bytes": peak_bytes(where)}
    if where.type == "cuda":
        figures["reserved_bytes"] = torch.cuda.max_memory_reserved()
    if compiled:
        figures["compile_seconds"] = sum(first) - len(first) * figures["step_seconds"]
    rate = matmul_rate(where, torch.bfloat16, 64 if report.tiny else None)
    figures |= {"flop_per_second": flop[preset] / figures["step_seconds"], "matmul_flop_per_second": rate}
    figures["matmul_fraction"] = figures["flop_per_second"] / rate
    return figures | {"hours_for_40000_steps_extrapolated": figures["step_seconds"] * 40_000 / 3600}


def compile_anew(method: AdaptationMethod, tiny: bool) -> None:
    """Compile as training does, nothing being left of an earlier part; a tiny one goes the same way, but is left."""
    torch.compiler.reset()
    with patch.object(torch, "compile", partial(torch.compile, disable=tiny)):
        compile_network(method)


@contextmanager
def warnings_of(logger: str) -> Iterator[list[str]]:
    """What a logger warns of."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(logger).addHandler(handler)
    try:
        yield messages
    finally:
        logging.getLogger(logger).removeHandler(handler)


def straight_rendition(report: Report) -> None:
    """The published step, of one clip, beside its straight rendition (yardstick.py)."""
    size = SIZES["published"]
    overrides = [*size.overrides, "--training.precision=bf16-mixed", *(TINY_CNN if report.tiny else ())]
    colours = True
    try:
        import skimage.exposure  # noqa: F401  the rendition matches colours with it
    except ImportError:
        colours = False
        overrides.append("--method.preparation.match_histogram=false")
    load = partial(stcl.load_settings, size.config, overrides)
    about = {"clips": 1, "colours_matched": colours}
    report.part("ratio", lambda: about | ratio(report, load()))
    report.part("gradients", lambda: about | gradients(load()))


def ratio(report: Report, settings: Settings) -> dict[str, Any]:
    """Seconds of both, by turns, and of their parts in further steps."""
    torch.backends.cudnn.benchmark = True
    report.doing("making networks and clips")
    method = make_method(settings, device())
    batches = [synthetic_batch(method, settings, seed) for seed in range(2)]
    start = settings.training.steps // 2
    yardstick = PublishedStep(method, settings.training.steps)
    prepare_networks(method, settings.training)
    ours = Driver(method, settings, start)
    report.doing("steps of both, by turns")
    for batch in batches:
        ours.step(batch)
    count = 1 if report.tiny else 5
    figures = race(ours, yardstick, batches, Namespace(steps=2 * count, yardstick_steps=count))
    report.doing("parts of both", **figures)
    mine, theirs = parts_of_ours(ours, batches[:1]), parts_of_yardstick(yardstick, start, batches[:1])
    return figures | {"parts": {"ours": mine, "yardstick": theirs}}


def gradients(settings: Settings) -> dict[str, Any]:
    """Largest differences of losses and gradients in float32; see train_step.py."""
    losses, sharp = compare(settings, device(), 1, 1)
    with patch.object(F, "relu", lambda features, inplace=False: F.gelu(features)):
        _, smooth = compare(settings, device(), 1, 1)
    names = ("max_loss_difference", "max_gradient_difference", "max_smooth_gradient_difference")
    return dict(zip(names, (losses, sharp, smooth), strict=True))


def memory_of_presets(report: Report) -> None:
    """What memory.py measures, then what it counts without a card."""
    config, where = "synthia_seq-cityscapes_seq/stcl_published", device().type
    overrides = TINY_MEMORY if report.tiny else ()
    measured: dict[str, int] = {}

    def measure(preset: str) -> Figures:
        row = memory.row_of(config, preset, overrides, where)
        measured[preset] = row.peak_bytes
        return shown(row) | ({"reserved_bytes": torch.cuda.max_memory_reserved()} if where == "cuda" else {})

    def count(preset: str) -> Figures:
        row = memory.row_of(config, preset, overrides, "count")
        return shown(row) | {"measured_fraction": measured[preset] / row.peak_bytes if preset in measured else None}

    presets = ["80gb"] if report.tiny else [*reversed(list_presets()), "none"]
    for preset in presets:
        report.part(preset, partial(measure, preset))
    for preset in presets:
        report.part(f"{preset}, counted", partial(count, preset))


def shown(row: memory.Row) -> dict[str, Any]:
    """A row of memory.py without its name."""
    return {key: value for key, value in asdict(row).items() if key not in ("preset", "crop")}
