"""``stcl push`` and ``stcl pull``: their arguments and what they print."""
# ruff: noqa: T201  prints, as cli.py does

import argparse
from typing import TYPE_CHECKING

from stcl.commands.arguments import add_verb, path, place

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs


def add_push(verbs: "Verbs") -> None:
    """What ``stcl push`` understands."""
    text = "Upload a model folder to the Hugging Face hub (pip install 'stcl[hub]'), or copy it to a local folder."
    parser = add_verb(verbs, "push", "upload a model folder to the Hugging Face hub", text)
    parser.add_argument("folder", type=path, metavar="FOLDER", help="folder that 'stcl export --license ID' wrote")
    parser.add_argument("repository", type=place, metavar="REPO_ID", help="owner/name, or ./folder, or a file: URL")
    parser.add_argument("--private", action="store_true", help="make a new repository a private one")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to upload to (default: main)")


def add_pull(verbs: "Verbs") -> None:
    """What ``stcl pull`` understands."""
    text = "Fetch a model folder from the Hugging Face hub or a local folder. Files it cannot vouch for are refused."
    parser = add_verb(verbs, "pull", "fetch a model folder from the Hugging Face hub", text)
    parser.add_argument("repository", type=place, metavar="REPO_ID", help="owner/name, or ./folder, or a file: URL")
    parser.add_argument("--out", type=path, required=True, metavar="DIR", help="new folder")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit (default: main)")
    parser.add_argument("--force", action="store_true", help="replace a model that lies there")


def push(arguments: argparse.Namespace) -> None:
    """Do what ``stcl push`` was asked."""
    import stcl

    print(f"Model: {stcl.push(arguments.folder, arguments.repository, arguments.private, arguments.revision)}")


def pull(arguments: argparse.Namespace) -> None:
    """Do what ``stcl pull`` was asked."""
    import stcl

    print(f"Model: {stcl.pull(arguments.repository, arguments.out, arguments.revision, arguments.force)}")
