"""``stcl data render``: its arguments and what it prints."""
# ruff: noqa: T201  prints, as cli.py does

import argparse
import os
from typing import TYPE_CHECKING

from stcl.commands.arguments import add_verb, count, path, processes

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs


def add_arguments(verbs: "Verbs") -> None:
    """What ``stcl data render`` understands."""
    text = (
        "Render TwinStreets, the built-in benchmark, into the folder layout of a published data set.\n\n"
        "  stcl data render --layout synthia-seq --style clean --clips 40 --out data/source\n"
        "  stcl data render --layout cityscapes-seq --style camera --split val --clips 20 --out data/target"
    )
    parser = add_verb(verbs, "data render", "render TwinStreets into a published layout", text)
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


def main(arguments: argparse.Namespace) -> None:
    """Do what ``stcl data render`` was asked."""
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
