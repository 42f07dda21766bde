"""``stcl predict``: its arguments and what it prints."""
# ruff: noqa: T201  prints, as cli.py does

import argparse
import sys
from typing import TYPE_CHECKING

from stcl.commands.arguments import (
    add_verb,
    at_least_one,
    count,
    launched_shard,
    path,
    place,
    positive,
    rate,
    shard,
    size,
)

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs, launched_shard


def add_arguments(verbs: "Verbs") -> None:
    """What ``stcl predict`` understands."""
    text = (
        "Segment videos without labels: OUT/<name>/overlay.mp4, shares.csv and, if wanted, labels/ and confidence/.\n\n"
        "INPUT is a video file, a folder of frames, a camera (camera:0) or a URL (rtsp://..., http://...). Call it\n"
        "again after an interruption: what is done is never done again (docs/predict.md)."
    )
    parser = add_verb(verbs, "predict", "segment video files, folders of frames, a camera", text)
    parser.add_argument(
        "inputs", type=place, nargs="+", metavar="INPUT", help="video file, folder of frames, camera or URL"
    )
    parser.add_argument(
        "--checkpoint", type=place, required=True, metavar="CKPT", help="run folder, or weights (stcl.load_model)"
    )
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="each input gets a folder in there")
    kinds = ("overlay", "labels", "confidence", "shares")
    parser.add_argument("--save", nargs="+", choices=kinds, default=["overlay", "shares"], help="what to keep")
    parser.add_argument("--ids", choices=("train", "cityscapes"), default="train", help="ids of label maps")
    parser.add_argument("--shares", choices=("csv", "parquet"), default="csv", help="format of the class shares")
    parser.add_argument("--space", metavar="NAME", help="label space, for a checkpoint that does not say")
    parser.add_argument("--size", type=size, metavar="WxH", help="network's input (default: as trained, or the frame)")
    parser.add_argument("--flow", choices=("dis", "none"), default="dis", help="none: each frame by itself")
    parser.add_argument("--cut", type=positive, default=0.35, help="contrast left unexplained at a cut (default 0.35)")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored frame; twice the time")
    parser.add_argument(
        "--scales", type=positive, nargs="+", default=[1.0], metavar="S", help="average over these sizes"
    )
    parser.add_argument("--tile", type=size, metavar="WxH", help="overlapping tiles, for frames larger than memory")
    parser.add_argument("--device", help="e.g. cpu, cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--shard", type=shard, metavar="I/N", help="part I of N of the inputs (torchrun: by rank)")
    parser.add_argument("--fps", type=rate, default=10.0, help="frames a second of folders (default 10)")
    parser.add_argument("--frames", type=at_least_one, metavar="N", help="at most so many frames of each input")
    parser.add_argument("--part-frames", type=count, default=250, metavar="N", help="what a kill costs (default 250)")
    parser.add_argument("--timeout", type=positive, default=10.0, metavar="SECONDS", help="wait for a URL (default 10)")
    parser.add_argument("--force", action="store_true", help="replace earlier results")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def main(arguments: argparse.Namespace) -> int:
    """Do what ``stcl predict`` was asked."""
    import signal

    from stcl.commands.predict.frames import PredictOptions
    from stcl.commands.predict.recording import Outputs
    from stcl.commands.predict.run import Job, predict_files
    from stcl.pages.film import frame_rate

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl+C: a recording of a camera is finished
    options = PredictOptions(
        arguments.size,
        arguments.flow,
        arguments.cut,
        arguments.flip,
        tuple(arguments.scales),
        arguments.tile,
        arguments.device,
    )
    job = Job(
        options,
        Outputs(tuple(arguments.save), arguments.ids, arguments.shares, arguments.part_frames),
        frame_rate(arguments.fps),
        arguments.frames,
        arguments.timeout,
        arguments.shard or launched_shard(),
        arguments.force,
        arguments.quiet,
    )
    status = 0
    for outcome in predict_files(arguments.inputs, arguments.checkpoint, arguments.out, job, arguments.space):
        if outcome.frames is None:
            print(f"{outcome.folder}: finished before.")
        else:
            print(f"{outcome.folder}: {outcome.frames} frames, {outcome.fps:.1f} a second.")
        if outcome.problem:
            print(f"stcl: error: {outcome.problem} What came before it is kept: {outcome.folder}.", file=sys.stderr)
            status = 2
    return status
