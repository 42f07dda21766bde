"""The command ``stcl``: each sub-command is one public verb. Heavy imports happen inside the sub-command."""
# ruff: noqa: T201  the one place that prints

import sys

if __name__ == "__main__" and not sys.flags.safe_path:  # python -m puts the working folder first
    sys.path.pop(0)

import argparse
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import stcl
from stcl.commands import (
    analyse,
    arena,
    check,
    demo,
    evaluate,
    export,
    flow,
    hub,
    inspect,
    predict,
    prepare,
    render,
    report,
    train,
)
from stcl.commands.arguments import Parser
from stcl.errors import StclError, TrainingStopped, lacks_memory, one_line, shortened
from stcl.files.places import shown_text
from stcl.surroundings import check_surroundings, ready_streams, stream_problem

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs

    Command = tuple[Callable[[Verbs], None], Callable[[argparse.Namespace], int | None]]

DESCRIPTION = """Train a video segmentation network on labelled synthetic driving video so that it works on your
unlabelled real video, and see how well it does.

New here? Run 'stcl demo': it needs no data set and ends with a page to look at."""

COMMANDS: "dict[str, Command]" = {
    "demo": (demo.add_arguments, demo.main),
    "train": (train.add_arguments, train.main),
    "evaluate": (evaluate.add_arguments, evaluate.main),
    "predict": (predict.add_arguments, predict.main),
    "flow": (flow.add_arguments, flow.main),
    "inspect": (inspect.add_arguments, inspect.main),
    "report": (report.add_arguments, report.main),
    "arena": (arena.add_arguments, arena.main),
    "analyse": (analyse.add_arguments, analyse.main),
    "export": (export.add_arguments, export.main),
    "push": (hub.add_push, hub.push),
    "pull": (hub.add_pull, hub.pull),
    "data check": (check.add_arguments, check.main),
    "data prepare": (prepare.add_arguments, prepare.main),
    "data render": (render.add_arguments, render.main),
}
"""Every sub-command by its words."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 done, 1 a run of an arena failed, 2 a mistake that the message explains, 75 asked to stop and saved (start it
    again), 130 interrupted.
    """
    os.environ["PYTHONSAFEPATH"] = "1"  # no interpreter that is started below imports from the working folder
    os.environ["MPLBACKEND"] = "agg"  # nothing is drawn but into files
    ready_streams()
    status = _run(list(sys.argv[1:] if argv is None else argv))
    if problem := stream_problem():
        return _complain(f"what was to be shown could not be written ({problem.strerror}).")
    return status


def _run(words: list[str]) -> int:
    """Do what the words say; whatever a user can mend becomes one line."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(words)
    if rest and not getattr(arguments, "takes_overrides", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.overrides, arguments.words = rest, words
    try:
        check_surroundings()
        return COMMANDS[arguments.verb][1](arguments) or 0
    except TrainingStopped as stopped:
        print(f"stcl: {one_line(str(stopped))}", file=sys.stderr)
        return stopped.status
    except StclError as error:
        return _complain(shown_text(str(error), words))
    except OSError as error:  # a path that is no folder, a full disk, a missing permission
        what = error.strerror or str(error).strip().rpartition("\n")[2] or type(error).__name__
        place = f"{error.filename}: " if error.filename else ""
        what = shown_text(f"{place}{what}", words)
        return _complain(f"{what}. Check the path, its permissions and the room on the disk.")
    except KeyboardInterrupt:
        print("stcl: interrupted; unfinished output is marked as such and not mistaken for a result.", file=sys.stderr)
        return 130
    except Exception as error:
        if not lacks_memory(error):
            raise
        return _complain(f"The memory is too small ({shortened(error, 200)}). Ask for smaller frames, or for fewer.")


def _complain(message: str) -> int:
    """One line about a mistake; its exit status."""
    print(f"stcl: error: {one_line(message)}", file=sys.stderr)
    return 2


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands, built without a heavy import."""
    parser = Parser("stcl", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"stcl {stcl.__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    data = None
    for words, (add_arguments, _) in COMMANDS.items():
        if not words.startswith("data "):
            add_arguments(verbs)
            continue
        if data is None:
            below = verbs.add_parser("data", help="check and make data sets", description="Check and make data sets.")
            data = below.add_subparsers(title="commands", metavar="COMMAND", required=True)
        add_arguments(data)
    return parser


if __name__ == "__main__":
    sys.exit(main())
