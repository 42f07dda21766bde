"""``stcl inspect``: its arguments and what it prints."""
# ruff: noqa: T201  prints, as cli.py does

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stcl.commands.arguments import add_verb, count, path, refuse_swapped
from stcl.errors import SettingError
from stcl.resources import list_presets

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs


def add_arguments(verbs: "Verbs") -> None:
    """What ``stcl inspect`` understands."""
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


def main(arguments: argparse.Namespace) -> None:
    """Do what ``stcl inspect`` was asked."""
    from stcl import inspect, load_settings

    if not Path(arguments.subject).is_dir():
        refuse_swapped(arguments, arguments.subject)
        subject = load_settings(arguments.subject, arguments.overrides, arguments.preset)
    elif arguments.overrides or arguments.preset:
        raise SettingError("A run is inspected with its own settings: take the preset and the overrides out.")
    else:
        subject = arguments.subject
    print(f"Page: {inspect(subject, arguments.out, arguments.steps)}")
