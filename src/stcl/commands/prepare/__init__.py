"""``stcl data prepare``: its arguments and what it prints."""
# ruff: noqa: T201  prints, as cli.py does

import argparse
from typing import TYPE_CHECKING

from stcl.commands.arguments import add_config, add_verb, processes, refuse_swapped, shard

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs


def add_arguments(verbs: "Verbs") -> None:
    """What ``stcl data prepare`` understands."""
    text = (
        "Decode once what a configuration trains on: frames, labels of the source and flow at training size, in the\n"
        "folder that its key 'prepared' names. 'stcl train' uses them where they are complete. Call it again after an\n"
        "interruption or a change of files: what is whole is kept."
    )
    parser = add_verb(verbs, "data prepare", "decode once what a configuration trains on", text)
    add_config(parser, "data prepare", "[--shard I/N] [--workers N]")
    parser.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="part I of N, for several machines")
    parser.add_argument("--workers", type=processes, help="processes (default: one a core; 0: none but this one)")


def main(arguments: argparse.Namespace) -> None:
    """Do what ``stcl data prepare`` was asked."""
    from stcl import load_settings
    from stcl.commands.prepare.run import prepare, shown_bytes

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
