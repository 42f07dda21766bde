"""The command ``stcl``: each sub-command is one public verb. Heavy imports happen inside the sub-command."""
# ruff: noqa: T201  the one place that prints

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from stcl.errors import SettingError, StclError, TrainingStopped
from stcl.resources import config_path, list_configs, list_presets

if TYPE_CHECKING:
    Command = Callable[[argparse.Namespace], None]
    Verbs = argparse._SubParsersAction["Parser"]

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


class Parser(argparse.ArgumentParser):
    """Answers a mistake with one line, like every other part of the command."""

    def error(self, message: str) -> NoReturn:
        """Print the message and leave with status 2."""
        self.exit(2, f"stcl: error: {message}. See '{self.prog} --help'.\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    0 done, 2 a mistake that the message explains, 75 asked to stop and saved (start it again), 130 interrupted.
    """
    parser = build_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    arguments, rest = parser.parse_known_args(words)
    if rest and not getattr(arguments, "takes_overrides", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.overrides, arguments.words = rest, words
    try:
        arguments.run(arguments)
    except TrainingStopped as stopped:
        print(f"stcl: {stopped}", file=sys.stderr)
        return stopped.status
    except StclError as error:
        print(f"stcl: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a path that is no folder, a full disk, a missing permission
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error).strip().splitlines()[-1]
        print(f"stcl: error: {what}. Check the path, its permissions and the room on the disk.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stcl: interrupted; unfinished output is marked as such and not mistaken for a result.", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands, built without a heavy import."""
    parser = Parser("stcl", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(verbs)
    _add_train(verbs)
    _add_evaluate(verbs)
    _add_report(verbs)
    _add_data(verbs)
    return parser


def _add(verbs: "Verbs", name: str, summary: str, text: str, run: "Command") -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.set_defaults(run=run)
    return parser


def _add_demo(verbs: "Verbs") -> None:
    text = (
        "Render two looks of a street world, train without and with adaptation, and write a page about it:\n"
        "OUT/report.html, OUT/demo.mp4 and OUT/summary.json. A few minutes on two cores; needs no data set."
    )
    parser = _add(verbs, "demo", "the whole job on the built-in benchmark, in minutes", text, _demo)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for everything the demo makes")
    parser.add_argument("--seed", type=_count, default=0, help="determines the random draws of training (default 0)")


def _add_train(verbs: "Verbs") -> None:
    text = TRAIN_HELP + "".join(f"  {name}\n" for name in list_configs())
    parser = _add(verbs, "train", "train one network from a configuration", text, _train)
    parser.usage = (
        "stcl train CONFIG --out DIR [--preset NAME] [--group.key VALUE ...] [--print-config] [--quiet]\n"
        "       stcl train --resume RUN [--training.devices N ...] [--quiet]"
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file, or the name of a shipped one")
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder; must not hold a run yet")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with an unfinished run")
    parser.add_argument("--preset", metavar="NAME", help=f"fit a device's memory: {', '.join(list_presets())}")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(takes_overrides=True)


def _add_evaluate(verbs: "Verbs") -> None:
    text = "Measure trained networks on labelled target frames; writes RUN/results.json and prints a table."
    parser = _add(verbs, "evaluate", "measure trained networks on labelled frames", text, _evaluate)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder that 'stcl train' wrote")
    parser.add_argument("--split", help="split of the target data set (default: the configuration's)")
    parser.add_argument("--root", type=Path, help="folder of the target data set (default: the configuration's)")
    parser.add_argument("--out", type=Path, help="where the result goes, for a single RUN (default: RUN)")
    parser.add_argument("--samples", type=_count, help="how many frames to keep as pictures")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_report(verbs: "Verbs") -> None:
    text = "Compare evaluated runs: OUT/report.html, OUT/results.md and OUT/results.csv. Reads result files only."
    parser = _add(verbs, "report", "tables and a page from evaluated runs", text, _report)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder with a results.json")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the report")


def _add_data(verbs: "Verbs") -> None:
    parser = verbs.add_parser("data", help="make and inspect data sets", description="Make and inspect data sets.")
    below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    text = (
        "Render TwinStreets, the built-in benchmark, into the folder layout of a published data set.\n\n"
        "  stcl data render --layout synthia-seq --style clean --clips 40 --out data/source\n"
        "  stcl data render --layout cityscapes-seq --style camera --split val --clips 20 --out data/target"
    )
    render = _add(below, "render", "render TwinStreets into a published layout", text, _render)
    render.add_argument("--out", type=Path, required=True, metavar="DIR", help="root folder of the data set")
    render.add_argument("--layout", required=True, choices=("synthia-seq", "viper", "cityscapes-seq"))
    render.add_argument("--style", required=True, choices=("clean", "camera"), help="simulator look or dash-cam look")
    render.add_argument("--style-seed", type=_count, default=0, help="which look of that family (default 0)")
    render.add_argument("--seed", type=_count, default=0, help="which streets (default 0)")
    render.add_argument(
        "--split",
        choices=("train", "val", "test", "pretrain"),
        default="train",
        help="streets of different splits differ (default train)",
    )
    render.add_argument("--clips", type=_count, default=40, help="number of streets (default 40)")
    render.add_argument("--frames", type=_count, default=30, help="frames of each clip (default 30)")
    render.add_argument(
        "--size", type=_count, nargs=2, default=(256, 128), metavar=("WIDTH", "HEIGHT"), help="pixels (default 256 128)"
    )
    render.add_argument("--label-all", action="store_true", help="cityscapes-seq: label every frame, not one a clip")
    render.add_argument(
        "--exact-flow",
        type=_count,
        nargs="*",
        default=[],
        metavar="STEP",
        help="write flow to the STEP-th frame before",
    )
    render.add_argument("--workers", type=_count, default=0, help="processes (default: one a core)")
    render.add_argument("--quiet", action="store_true", help="no progress bar")


def _count(text: str) -> int:
    """A whole number from 0 up."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 up, found '{text}'")
    return int(text)


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

    before = arguments.words[arguments.words.index(arguments.config) - 1]
    if before in arguments.overrides and before.startswith("--") and "=" not in before:
        raise SettingError(
            f"CONFIG stands before the overrides: stcl train CONFIG {before} {arguments.config} ... "
            f"('{arguments.config}' was read as the configuration.)"
        )
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
    from rich.console import Console

    from stcl.engine.evaluate import evaluate
    from stcl.report import compare, rich_table

    if arguments.out is not None and len(arguments.runs) > 1:
        raise SettingError("--out takes one RUN; without it every result goes into its own run folder.")
    for run in arguments.runs:
        evaluate(run, arguments.split, arguments.root, arguments.out, arguments.samples, arguments.quiet)
    Console().print(rich_table(compare([arguments.out] if arguments.out else arguments.runs)))


def _report(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from stcl.report import compare, rich_table, write_report

    write_report(arguments.runs, arguments.out)
    Console().print(rich_table(compare(arguments.runs)))
    print(f"Page: {arguments.out / 'report.html'}")


def _render(arguments: argparse.Namespace) -> None:
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


def _version() -> str:
    import stcl

    return f"stcl {stcl.__version__}"


if __name__ == "__main__":
    sys.exit(main())
