"""What the command ``stcl`` understands: sub-commands, options and their help. Nothing heavy is imported here."""

import argparse
from typing import TYPE_CHECKING

import stcl
from stcl.arguments import (
    Parser,
    add_config,
    add_verb,
    at_least_one,
    count,
    path,
    place,
    positive,
    processes,
    rate,
    shard,
    size,
)
from stcl.data_cli import add_data
from stcl.resources import list_arenas, list_configs, list_presets

if TYPE_CHECKING:
    from stcl.arguments import Verbs

DESCRIPTION = """Train a video segmentation network on labelled synthetic driving video so that it works on your
unlabelled real video, and see how well it does.

New here? Run 'stcl demo': it needs no data set and ends with a page to look at."""

TRAIN_HELP = """Train one network from a configuration file.

CONFIG is a short YAML file; shipped ones can be given by name, e.g. twinstreets/stcl. Any of its keys can be changed on
the command line as --group.key value:

  stcl train twinstreets/stcl --out runs/stcl --training.steps 500 --method.lambda_t 0.5

groups of keys:
  source, target   data set (name, root, split, size, frames) with labels, and without
  evaluation       labelled target frames that the result is measured on
  flow             optical flow provider and its cache
  network          backbone, head, starting weights
  training         steps, batch size, workers, precision, devices
  method           name (source_only, stcl) and the method's own settings

'stcl train CONFIG --print-config' shows every key with its value. The run folder is a record of the run: config.yaml,
run.json, metrics.csv, TensorBoard events, checkpoints and the final weights model.safetensors.

A run that was stopped, killed or cut off goes on from its last checkpoint, exactly as if nothing had happened:

  stcl train --resume runs/stcl

SIGTERM, SIGUSR1 and Ctrl+C save first; the exit status is then 75 (try again), after Ctrl+C 130. Several devices:

  stcl train twinstreets/stcl --out runs/stcl --training.devices 2

shipped configurations:
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands, built without a heavy import."""
    parser = Parser("stcl", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"stcl {stcl.__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(verbs)
    _add_train(verbs)
    _add_evaluate(verbs)
    _add_predict(verbs)
    _add_flow(verbs)
    _add_inspect(verbs)
    _add_report(verbs)
    _add_arena(verbs)
    _add_analyse(verbs)
    _add_export(verbs)
    _add_push(verbs)
    _add_pull(verbs)
    add_data(verbs)
    return parser


def _add_demo(verbs: "Verbs") -> None:
    text = (
        "Render two looks of a street world, train without and with adaptation, and write a page about it:\n"
        "OUT/report.html, OUT/demo.mp4 and OUT/summary.json. A few minutes on two cores; needs no data set."
    )
    parser = add_verb(verbs, "demo", "the whole job on the built-in benchmark, in minutes", text)
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder for everything the demo makes")
    parser.add_argument("--seed", type=count, default=0, help="determines the random draws of training (default 0)")


def _add_train(verbs: "Verbs") -> None:
    text = TRAIN_HELP + "".join(f"  {name}\n" for name in list_configs())
    parser = add_verb(verbs, "train", "train one network from a configuration", text)
    parser.usage = (
        "stcl train CONFIG --out DIR [--preset NAME] [--group.key VALUE ...] [--print-config] [--quiet]\n"
        "       stcl train --resume RUN [--training.devices N ...] [--quiet]"
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file, or the name of a shipped one")
    parser.add_argument("--out", type=path, metavar="DIR", help="run folder; must not hold a run yet")
    parser.add_argument("--resume", type=path, metavar="RUN", help="go on with an unfinished run")
    parser.add_argument("--preset", metavar="NAME", help=f"fit a device's memory: {', '.join(list_presets())}")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(takes_overrides=True)


def _add_evaluate(verbs: "Verbs") -> None:
    text = "Measure trained networks on labelled target frames; writes RUN/results.json and prints a table."
    parser = add_verb(verbs, "evaluate", "measure trained networks on labelled frames", text)
    parser.add_argument("runs", type=path, nargs="+", metavar="RUN", help="folder that 'stcl train' wrote")
    parser.add_argument("--split", help="split of the target data set (default: the configuration's)")
    parser.add_argument("--root", type=path, help="folder of the target data set (default: the configuration's)")
    parser.add_argument("--out", type=path, help="where the result goes, for a single RUN (default: RUN)")
    parser.add_argument("--samples", type=count, help="how many frames to keep as pictures")
    parser.add_argument("--devices", type=processes, default=1, help="devices that share the frames (default 1)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_predict(verbs: "Verbs") -> None:
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


def _add_flow(verbs: "Verbs") -> None:
    text = (
        "Compute the optical flow of all clips that CONFIG trains and evaluates on into its flow.cache; what is there\n"
        "is skipped. With --report write a page about how well the flow explains the frames instead (docs/flow.md)."
    )
    parser = add_verb(verbs, "flow", "compute optical flow before training, look at it", text)
    add_config(parser, "flow", "[--shard I/N] [--workers N] [--report DIR]")
    parser.add_argument("--shard", type=shard, metavar="I/N", help="part I of N of the pairs (torchrun: by rank)")
    parser.add_argument("--workers", type=processes, metavar="N", help="processes (default: one a core; raft: 0)")
    parser.add_argument("--report", type=path, metavar="DIR", help="write a page about the flow into DIR, nothing else")
    parser.add_argument("--pairs", type=count, default=20, metavar="N", help="pairs for the page (default 20 a domain)")
    parser.add_argument("--against", nargs="+", default=["zero"], metavar="NAME", help="other flows (default zero)")


def _add_inspect(verbs: "Verbs") -> None:
    text = (
        "Take a few training steps and show what the last of them fed to the network: OUT/inspect.html, inspect.json\n"
        "and pictures. CONFIG and its overrides are those of 'stcl train'; a RUN goes on from its last checkpoint."
    )
    parser = add_verb(verbs, "inspect", "look at what enters a training step", text)
    parser.usage = "stcl inspect CONFIG|RUN --out DIR [--steps N] [--preset NAME] [--group.key VALUE ...]"
    parser.add_argument("subject", metavar="CONFIG|RUN", help="as for 'stcl train', or a run folder")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="new folder, or an earlier inspection's")
    parser.add_argument("--steps", type=count, default=8, metavar="N", help="steps to take (default 8)")
    parser.add_argument("--preset", metavar="NAME", help=f"fit a device's memory: {', '.join(list_presets())}")
    parser.set_defaults(takes_overrides=True)


def _add_report(verbs: "Verbs") -> None:
    text = "Compare evaluated runs: OUT/report.html, OUT/results.md and OUT/results.csv. Reads result files only."
    parser = add_verb(verbs, "report", "tables and a page from evaluated runs", text)
    parser.add_argument("runs", type=path, nargs="+", metavar="RUN", help="folder with a results.json")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder for the report")


def _add_analyse(verbs: "Verbs") -> None:
    text = (
        "How good the pseudo labels of runs are, compared with the target's labels, which are read for this alone:\n"
        "OUT/analysis.html, OUT/analysis.json and pictures of the worst frames. Runs that were trained with\n"
        "--training.snapshot_every N are shown over time."
    )
    parser = add_verb(verbs, "analyse", "how good pseudo labels are, over training", text)
    parser.add_argument("runs", type=path, nargs="+", metavar="RUN", help="run folders on one target data set")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder for the analysis")
    parser.add_argument("--split", help="split of the target data set (default: the one that is adapted to)")
    parser.add_argument("--frames", type=count, default=100, help="labelled frames at most (default 100)")
    parser.add_argument("--against", type=path, metavar="RUN", help="evaluated run to compare the mistakes with")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_arena(verbs: "Verbs") -> None:
    text = (
        "Run methods x seeds x pairs and compare them: OUT/arena.html, OUT/arena.md and OUT/arena.json.\n\n"
        "CONFIG is a YAML file (docs/arena.md) or a shipped one by name. What is done is never done again: call it\n"
        "again after an interruption, or in several places at once with one OUT.\n\nshipped arenas:\n"
    )
    parser = add_verb(
        verbs, "arena", "compare methods over seeds and data", text + "\n".join(map("  {}".format, list_arenas()))
    )
    parser.add_argument("plan", metavar="CONFIG", help="YAML file, or the name of a shipped one")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="folder of data, runs and table")
    parser.add_argument("--jobs", type=processes, default=1, metavar="N", help="runs at a time (default 1)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PAIR", help="these pairs only")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_export(verbs: "Verbs") -> None:
    text = (
        "Write a finished run as a model folder to hand on: the network, model.json and a model card, README.md.\n\n"
        "formats:\n"
        "  safetensors   the network itself, for stcl.load_model\n"
        "  onnx          two graphs, frame and fusion, for onnxruntime and others (pip install 'stcl[export]')\n"
        "  torch-export  the same graphs as .pt2 files, for torch.export.load\n\n"
        "Graphs are opened again and compared with the network; if they differ, nothing is written."
    )
    parser = add_verb(verbs, "export", "write a trained network as a folder to hand on", text)
    parser.add_argument("run", type=path, metavar="RUN", help="folder of a finished training")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="new folder")
    parser.add_argument("--format", required=True, metavar="FORMAT", help="safetensors, onnx or torch-export")
    parser.add_argument("--size", type=size, metavar="WxH", help="frames of the graphs (default: the target's size)")
    parser.add_argument("--dynamic", action="store_true", help="graphs for any batch, width and height")
    parser.add_argument("--license", default="unspecified", metavar="ID", help="of the weights, e.g. cc-by-4.0")
    parser.add_argument("--force", action="store_true", help="replace a model that lies there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_push(verbs: "Verbs") -> None:
    text = "Upload a model folder to the Hugging Face hub (pip install 'stcl[hub]'), or copy it to a local folder."
    parser = add_verb(verbs, "push", "upload a model folder to the Hugging Face hub", text)
    parser.add_argument("folder", type=path, metavar="FOLDER", help="folder that 'stcl export --license ID' wrote")
    parser.add_argument("repository", type=place, metavar="REPO_ID", help="owner/name, or ./folder, or a file: URL")
    parser.add_argument("--private", action="store_true", help="make a new repository a private one")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to upload to (default: main)")


def _add_pull(verbs: "Verbs") -> None:
    text = "Fetch a model folder from the Hugging Face hub or a local folder. Files it cannot vouch for are refused."
    parser = add_verb(verbs, "pull", "fetch a model folder from the Hugging Face hub", text)
    parser.add_argument("repository", type=place, metavar="REPO_ID", help="owner/name, or ./folder, or a file: URL")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="new folder")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit (default: main)")
    parser.add_argument("--force", action="store_true", help="replace a model that lies there")
