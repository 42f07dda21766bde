"""``stcl export``: its arguments and what it prints."""
# ruff: noqa: T201  prints, as cli.py does

import argparse
from typing import TYPE_CHECKING

from stcl.commands.arguments import add_verb, path, size

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs


def add_arguments(verbs: "Verbs") -> None:
    """What ``stcl export`` understands."""
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


def main(arguments: argparse.Namespace) -> None:
    """Do what ``stcl export`` was asked."""
    import stcl

    options = (arguments.format, arguments.size, arguments.dynamic, arguments.license, arguments.force, arguments.quiet)
    about = stcl.export(arguments.run, arguments.out, *options)
    if about["parity"]:
        print("Largest difference from the network: {difference:.1e} of the largest score.".format(**about["parity"]))
    print(f"Model: {arguments.out}. Its card is {arguments.out / 'README.md'}.")
