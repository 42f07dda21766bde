"""``stcl flow``: its arguments and what it prints."""
# ruff: noqa: T201  prints, as cli.py does

import argparse
import os
from typing import TYPE_CHECKING

from stcl.commands.arguments import add_config, add_verb, count, launched_shard, path, processes, refuse_swapped, shard

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs


def add_arguments(verbs: "Verbs") -> None:
    """What ``stcl flow`` understands."""
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


def main(arguments: argparse.Namespace) -> None:
    """Do what ``stcl flow`` was asked."""
    import stcl

    refuse_swapped(arguments, arguments.config)
    settings = stcl.load_settings(arguments.config, arguments.overrides, arguments.preset)
    if arguments.report is not None:
        options = (arguments.pairs, arguments.against, arguments.quiet)
        print(f"Page: {stcl.write_flow_report(settings, arguments.report, *options)}")
        return
    workers = arguments.workers
    if workers is None:
        workers = 0 if settings.flow.name == "raft" else os.cpu_count() or 1
    for filled in stcl.fill_flow_cache(settings, arguments.shard or launched_shard(), workers, arguments.quiet):
        if filled.missing:
            print(f"{filled.role}: no flow is needed, as nothing can be measured: {filled.missing}")
            continue
        done = f"{filled.pairs} flows, {filled.written} computed, {filled.pairs - filled.written} there before"
        print(f"{filled.role}: {filled.data}: {done}: {filled.folder}")
