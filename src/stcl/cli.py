"""The command ``stcl``: each sub-command is one public verb. Heavy imports happen inside the sub-command."""
# ruff: noqa: T201  the one place that prints

import sys

if __name__ == "__main__" and not sys.flags.safe_path:  # python -m puts the working folder first
    sys.path.pop(0)

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from stcl.arguments import Parser, refuse_swapped
from stcl.data_cli import DATA_COMMANDS
from stcl.errors import SettingError, StclError, TrainingStopped, lacks_memory, one_line, shortened
from stcl.options import build_parser
from stcl.places import shown_text
from stcl.resources import config_path
from stcl.surroundings import check_surroundings, ready_streams, stream_problem


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
        return COMMANDS[arguments.verb](arguments) or 0
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


def _demo(arguments: argparse.Namespace) -> None:
    from stcl.demo import run_demo

    run_demo(arguments.out, arguments.seed)


def _train(arguments: argparse.Namespace) -> None:
    if arguments.resume is not None:
        _resume(arguments)
        return
    if arguments.config is None:
        raise SettingError("Say what to train: stcl train CONFIG --out DIR. 'stcl train --help' lists configurations.")
    from stcl.engine.config import load_settings
    from stcl.engine.train import train

    refuse_swapped(arguments, arguments.config)
    settings = load_settings(config_path(arguments.config), arguments.overrides, arguments.preset)
    if arguments.print_config:
        print(settings.dump())
        return
    if arguments.out is None:
        raise SettingError("Say where the run goes: --out DIR.")
    _say_finished(train(settings, arguments.out, arguments.quiet))


def _resume(arguments: argparse.Namespace) -> None:
    if arguments.out is not None or arguments.preset is not None or arguments.print_config:
        raise SettingError("--resume RUN goes on in the run's own folder with its own settings: take the rest out.")
    from stcl.engine.train import resume

    rest = Parser(add_help=False, allow_abbrev=False)  # all words but these are overrides, CONFIG is none of them
    rest.add_argument("--resume")
    rest.add_argument("--quiet", action="store_true")
    overrides = rest.parse_known_args(arguments.words[1:])[1]
    _say_finished(resume(arguments.resume, overrides, arguments.quiet))


def _say_finished(run: Path) -> None:
    from stcl.engine.trainer import is_first_process

    if is_first_process():
        print(f"Finished: {run}. Measure it with: stcl evaluate {run}")


def _evaluate(arguments: argparse.Namespace) -> None:
    from stcl.engine.evaluate import evaluate
    from stcl.engine.trainer import is_first_process
    from stcl.report import compare, rich_table
    from stcl.terminal import plain_console

    if arguments.out is not None and len(arguments.runs) > 1:
        raise SettingError("--out takes one RUN; without it every result goes into its own run folder.")
    if arguments.devices < 1:
        raise SettingError("--devices counts the devices that share the frames: at least 1.")
    for run in arguments.runs:
        options = (arguments.split, arguments.root, arguments.out, arguments.samples, arguments.quiet)
        evaluate(run, *options, devices=arguments.devices)
    if is_first_process():
        plain_console().print(rich_table(compare([arguments.out] if arguments.out else arguments.runs)))


def _inspect(arguments: argparse.Namespace) -> None:
    from stcl import inspect, load_settings

    if not Path(arguments.subject).is_dir():
        refuse_swapped(arguments, arguments.subject)
        subject = load_settings(arguments.subject, arguments.overrides, arguments.preset)
    elif arguments.overrides or arguments.preset:
        raise SettingError("A run is inspected with its own settings: take the preset and the overrides out.")
    else:
        subject = arguments.subject
    print(f"Page: {inspect(subject, arguments.out, arguments.steps)}")


def _predict(arguments: argparse.Namespace) -> int:
    import signal

    from stcl.engine.predict import PredictOptions
    from stcl.engine.predict_files import Job, launched_shard, predict_files
    from stcl.engine.recording import Outputs
    from stcl.films import frame_rate

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


def _flow(arguments: argparse.Namespace) -> None:
    import stcl
    from stcl.engine.predict_files import launched_shard

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


def _report(arguments: argparse.Namespace) -> None:
    from stcl.report import compare, rich_table, write_report
    from stcl.terminal import plain_console

    write_report(arguments.runs, arguments.out)
    plain_console().print(rich_table(compare(arguments.runs)))
    print(f"Page: {arguments.out / 'report.html'}")


def _analyse(arguments: argparse.Namespace) -> None:
    import stcl

    options = (arguments.split, arguments.frames, arguments.against, arguments.quiet)
    for run in stcl.analyse(arguments.runs, arguments.out, *options)["runs"]:
        if run["note"]:
            print(f"{run['folder']}: {run['note']}")
    print(f"Page: {arguments.out / 'analysis.html'}")


def _arena(arguments: argparse.Namespace) -> int:
    from stcl.arena import run_arena
    from stcl.report.arena import rich_tables
    from stcl.terminal import plain_console

    options = (arguments.jobs, arguments.quiet, arguments.only, arguments.table)
    table = run_arena(arguments.plan, arguments.out, *options)
    plain_console().print(*rich_tables(table))
    for name, reason in table.failed.items():
        print(f"stcl: {name} failed: {reason}", file=sys.stderr)
    print(f"Page: {arguments.out / 'arena.html'}")
    return int(bool(table.failed))


def _export(arguments: argparse.Namespace) -> None:
    import stcl

    options = (arguments.format, arguments.size, arguments.dynamic, arguments.license, arguments.force, arguments.quiet)
    about = stcl.export(arguments.run, arguments.out, *options)
    if about["parity"]:
        print("Largest difference from the network: {difference:.1e} of the largest score.".format(**about["parity"]))
    print(f"Model: {arguments.out}. Its card is {arguments.out / 'README.md'}.")


def _push(arguments: argparse.Namespace) -> None:
    import stcl

    print(f"Model: {stcl.push(arguments.folder, arguments.repository, arguments.private, arguments.revision)}")


def _pull(arguments: argparse.Namespace) -> None:
    import stcl

    print(f"Model: {stcl.pull(arguments.repository, arguments.out, arguments.revision, arguments.force)}")


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "demo": _demo,
    "train": _train,
    "evaluate": _evaluate,
    "inspect": _inspect,
    "predict": _predict,
    "flow": _flow,
    "report": _report,
    "arena": _arena,
    "analyse": _analyse,
    "export": _export,
    "push": _push,
    "pull": _pull,
    **DATA_COMMANDS,
}
"""Every sub-command by its words."""


if __name__ == "__main__":
    sys.exit(main())
