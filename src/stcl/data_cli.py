"""``stcl data``: what its sub-commands understand, and what they do. Heavy imports happen inside them."""
# ruff: noqa: T201  prints, as cli.py does

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from stcl.arguments import add_config, add_verb, count, path, processes, refuse_swapped, shard

if TYPE_CHECKING:
    from stcl.arguments import Verbs


def add_data(verbs: "Verbs") -> None:
    """The sub-commands below ``stcl data``."""
    parser = verbs.add_parser("data", help="check and make data sets", description="Check and make data sets.")
    below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_check(below)
    _add_prepare(below)
    _add_render(below)


def _add_check(below: "Verbs") -> None:
    text = "Look at a configuration's data: what there is, all that is wrong, what to do. Status 0: training can start."
    parser = add_verb(below, "data check", "is the data right, before training", text)
    add_config(parser, "data check", "[--out PAGE] [--full] [--workers N]")
    parser.add_argument("--out", type=path, metavar="PAGE", help="also write a page with pictures, e.g. check.html")
    parser.add_argument("--full", action="store_true", help="read everything, not about 100 frames of each data set")
    parser.add_argument("--workers", type=processes, metavar="N", help="processes (default: one a core)")


def _add_prepare(below: "Verbs") -> None:
    text = (
        "Decode once what a configuration trains on: frames, labels of the source and flow at training size, in the\n"
        "folder that its key 'prepared' names. 'stcl train' uses them where they are complete. Call it again after an\n"
        "interruption or a change of files: what is whole is kept."
    )
    parser = add_verb(below, "data prepare", "decode once what a configuration trains on", text)
    add_config(parser, "data prepare", "[--shard I/N] [--workers N]")
    parser.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="part I of N, for several machines")
    parser.add_argument("--workers", type=processes, help="processes (default: one a core; 0: none but this one)")


def _add_render(below: "Verbs") -> None:
    text = (
        "Render TwinStreets, the built-in benchmark, into the folder layout of a published data set.\n\n"
        "  stcl data render --layout synthia-seq --style clean --clips 40 --out data/source\n"
        "  stcl data render --layout cityscapes-seq --style camera --split val --clips 20 --out data/target"
    )
    parser = add_verb(below, "data render", "render TwinStreets into a published layout", text)
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="root folder of the data set")
    parser.add_argument("--layout", required=True, choices=("synthia-seq", "viper", "cityscapes-seq"))
    parser.add_argument("--style", required=True, choices=("clean", "camera"), help="simulator look or dash-cam look")
    parser.add_argument("--style-seed", type=count, default=0, help="which look of that family (default 0)")
    parser.add_argument("--seed", type=count, default=0, help="which streets (default 0)")
    parser.add_argument(
        "--split",
        choices=("train", "val", "test", "pretrain"),
        default="train",
        help="streets of different splits differ (default train)",
    )
    parser.add_argument("--clips", type=count, default=40, help="number of streets (default 40)")
    parser.add_argument("--frames", type=count, default=30, help="frames of each clip (default 30)")
    parser.add_argument(
        "--size", type=count, nargs=2, default=(256, 128), metavar=("WIDTH", "HEIGHT"), help="pixels (default 256 128)"
    )
    parser.add_argument("--label-all", action="store_true", help="cityscapes-seq: label every frame, not one a clip")
    parser.add_argument(
        "--exact-flow",
        type=count,
        nargs="*",
        default=[],
        metavar="STEP",
        help="write flow to the STEP-th frame before",
    )
    parser.add_argument("--workers", type=processes, default=0, help="processes (default: one a core)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _check(arguments: argparse.Namespace) -> int:
    import stcl
    from stcl.report.check import rich_check
    from stcl.terminal import plain_console

    refuse_swapped(arguments, arguments.config)
    settings = stcl.load_settings(arguments.config, arguments.overrides, arguments.preset)
    record = stcl.check_data(settings, arguments.out, arguments.full, arguments.workers, arguments.quiet)
    plain_console().print(*rich_check(record), sep="")
    if arguments.out is not None:
        print(f"Page: {arguments.out}")
    return 0 if record["ready"] else 2


def _prepare(arguments: argparse.Namespace) -> None:
    from stcl import load_settings
    from stcl.engine.prepare import prepare, shown_bytes

    refuse_swapped(arguments, arguments.config)
    settings = load_settings(arguments.config, arguments.overrides, arguments.preset)
    for done in prepare(settings, arguments.shard, arguments.workers, arguments.quiet):
        print(
            f"{done.domain}: {done.made} of {done.records} frames, labels and flows prepared in {done.seconds:.1f} s; "
            f"all of them take {shown_bytes(done.size_bytes)}. {done.folder}"
        )
        if done.removed:
            print(f"{done.domain}: {done.removed} segments were damaged or out of date and were removed.")
        if done.fault:
            print(f"{done.domain}: not complete yet (other shards, another process): {done.fault}")


def _render(arguments: argparse.Namespace) -> None:
    from stcl.twinstreets.export import ExportRequest, export

    request = ExportRequest(
        layout=arguments.layout,
        style=arguments.style,
        style_seed=arguments.style_seed,
        seed=arguments.seed,
        split=arguments.split,
        clips=arguments.clips,
        frames=arguments.frames,
        size=tuple(arguments.size),
        label_every=1 if arguments.label_all else None,
        flow_offsets=tuple(arguments.exact_flow),
    )
    result = export(arguments.out, request, arguments.workers or os.cpu_count() or 1, not arguments.quiet)
    if result.frames:
        print(f"{result.frames} frames in {result.seconds:.1f} s ({result.frames / result.seconds:.1f} a second).")


DATA_COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "data check": _check,
    "data prepare": _prepare,
    "data render": _render,
}
"""The sub-commands of ``stcl data`` by their words."""
