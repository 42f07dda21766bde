"""``stcl train``: its arguments and what it prints."""
# ruff: noqa: T201  prints, as cli.py does

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from stcl.commands.arguments import Parser, add_verb, path, refuse_swapped
from stcl.errors import SettingError
from stcl.resources import config_path, list_configs, list_presets

if TYPE_CHECKING:
    from stcl.commands.arguments import Verbs


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


def add_arguments(verbs: "Verbs") -> None:
    """What ``stcl train`` understands."""
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


def main(arguments: argparse.Namespace) -> None:
    """Do what ``stcl train`` was asked."""
    if arguments.resume is not None:
        _resume(arguments)
        return
    if arguments.config is None:
        raise SettingError("Say what to train: stcl train CONFIG --out DIR. 'stcl train --help' lists configurations.")
    from stcl.training.config import load_settings
    from stcl.training.train import train

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
    from stcl.training.train import resume

    rest = Parser(add_help=False, allow_abbrev=False)  # all words but these are overrides, CONFIG is none of them
    rest.add_argument("--resume")
    rest.add_argument("--quiet", action="store_true")
    overrides = rest.parse_known_args(arguments.words[1:])[1]
    _say_finished(resume(arguments.resume, overrides, arguments.quiet))


def _say_finished(run: Path) -> None:
    from stcl.training.devices import is_first_process

    if is_first_process():
        print(f"Finished: {run}. Measure it with: stcl evaluate {run}")
