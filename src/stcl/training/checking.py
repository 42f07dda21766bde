"""From plain data to settings: every key and value is checked, and each mistake gets one sentence."""

import json
import math
from argparse import ArgumentError
from collections.abc import Callable, Iterator
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from stcl.data import DATASETS
from stcl.errors import SettingError, check_number, unknown_name
from stcl.files.pictures import LARGEST_PX
from stcl.flow import FLOWS
from stcl.labels import SPACES
from stcl.methods import METHODS, AdaptationMethod
from stcl.models import BACKBONES, HEADS
from stcl.models.views import GRID_PX
from stcl.training.kinds import fits, odd_text, shown, wanted
from stcl.training.settings import (
    DomainSettings,
    EvaluationSettings,
    FlowSettings,
    NetworkSettings,
    Settings,
    TrainingSettings,
)

Where = Callable[[str], str]
"""Says where a key was written, e.g. in which file."""

SMALLEST_PX = 32

MOST_DEVICES = 2**10
"""Of one machine; -1 takes all that it has."""

RANGES: dict[str, tuple[int, float]] = {
    "seed": (0, 2**31 - 1),
    "training.steps": (1, 2**40),
    "training.batch_size": (1, 2**16),
    "training.workers": (0, 2**10),
    "training.nodes": (1, 2**16),
    **dict.fromkeys(("training.skipped_steps", "evaluation.samples"), (0, math.inf)),
    **{f"training.{name}_every": (1, math.inf) for name in ("log", "checkpoint", "snapshot")},
    **dict.fromkeys(("training.calibration_clips", "evaluation.batch_size"), (1, math.inf)),
}
"""Least and most of whole numbers; the most lies beyond what anyone needs: there a machine hangs without a word."""


def check_settings(data: dict[str, Any], where: str | Where) -> Settings:
    """Turn plain data into :class:`Settings`; ``where`` says in messages where a key comes from."""
    say: Where = where if callable(where) else lambda _: str(where)
    method = data.get("method")
    if not isinstance(method, dict) or "name" not in method:
        raise SettingError(
            f"{say('method')}: the key method.name is missing. Say which method to train, e.g. method: {{name: stcl}}."
        )
    if method["name"] not in [*METHODS]:
        raise SettingError(f"{say('method.name')}: {unknown_name('method.name', method['name'], METHODS)}")
    method_class = METHODS[method["name"]]
    parser = _parser(method_class)
    _check_keys(parser, data, say)
    if data["space"] not in SPACES:
        raise SettingError(f"{say('space')}: {unknown_name('space', data['space'], SPACES)}")
    try:
        parsed = parser.parse_object(data)
        ready = parser.instantiate(parsed)
    except (ArgumentError, SettingError) as error:
        raise SettingError(f"{say('')}: {' '.join(str(error).split())}") from None
    resolved = json.loads(json.dumps(parsed.as_dict()))  # tuples become lists
    settings = _assemble(ready, method_class, yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    _check_names(settings, say)
    _check_numbers(settings, say)
    _check_method(settings, say)
    _check_domains(settings, say)
    return settings


def _parser(method_class: type[AdaptationMethod]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--name", type=str, required=True, help="Name of the run in tables.")
    parser.add_argument("--title", type=str | None, default=None, help="How pictures and tables call it.")
    parser.add_argument("--seed", type=int, default=0, help="Determines every random draw.")
    parser.add_argument("--space", type=str, required=True, help="Label space.")
    parser.add_argument("--oracle", type=bool, default=False, help="Trains with target labels: an upper bound.")
    parser.add_argument("--prepared", type=str | None, default="data/prepared", help="Folder of prepared data.")
    parser.add_argument("--source", type=DomainSettings)
    parser.add_argument("--target", type=DomainSettings)
    parser.add_argument("--evaluation", type=EvaluationSettings, default=EvaluationSettings())
    parser.add_argument("--flow", type=FlowSettings, default=FlowSettings())
    parser.add_argument("--network", type=NetworkSettings, default=NetworkSettings())
    parser.add_argument("--training", type=TrainingSettings, default=TrainingSettings())
    parser.add_argument("--method.name", type=str)
    parser.add_class_arguments(method_class, "method", skip={"network", "space", "seed"}, instantiate=False)
    return parser


def _assemble(ready: Namespace, method_class: type[AdaptationMethod], text: str) -> Settings:
    method = dict(vars(ready.method))
    method.pop("name")
    plain = {key: value for key, value in vars(ready).items() if key not in ("method", "space", "title")}
    return Settings(
        **plain,
        title=ready.title or ready.name,
        space=SPACES[ready.space],
        method_class=method_class,
        method=method,
        text=text,
    )


# ---- keys and types ----


def _check_keys(parser: ArgumentParser, data: dict[str, Any], say: Where) -> None:
    """Name the first key that is unknown, of a wrong type or missing."""
    actions = {action.dest: action for action in parser._actions}
    kinds = {name: action._typehint for name, action in actions.items() if hasattr(action, "_typehint")}
    groups = {name.rpartition(".")[0] for name in kinds} - {""}
    for key, value in _entries(data, groups, say):
        if key in groups:
            if not isinstance(value, dict):
                inside = ", ".join(_inside(key, kinds, groups))
                raise SettingError(f"{say(key)}: {key} is a group of keys ({inside}), found {shown(value)}.")
        elif key not in kinds:
            group, _, last = key.rpartition(".")
            place = f", group {group}" if group else ""
            raise SettingError(f"{say(key)}{place}: {unknown_name('key', last, _inside(group, kinds, groups))}")
        elif odd := odd_text(value):
            raise SettingError(f"{say(key)}: {key} holds a text that {odd}: {shown(value)}.")
        elif not fits(value, kinds[key]):
            is_text = not isinstance(value, list | dict | None) and fits(str(value), kinds[key])
            quotes = f" Quotes make it text: \"'{value}'\"." if is_text else ""
            raise SettingError(f"{say(key)}: {key} must be {wanted(kinds[key])}, found {shown(value)}.{quotes}")
    given = {key for key, _ in _entries(data, groups, say)}
    for key, action in actions.items():
        if action.required and key not in given:
            meaning = str(action.help).rstrip(".").replace("``", "'")
            raise SettingError(f"{say('')}: the key {key} is missing: {meaning}.")


def _entries(data: dict[str, Any], groups: set[str], say: Where, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``group.key`` and value of everything that is no group to be entered."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if "." in str(key):
            raise SettingError(
                f"{say(name)}: '{name}' has a dot, which only overrides on the command line have. Write groups: "
                f"{name.partition('.')[0]}: {{{name.partition('.')[2]}: ...}}."
            )
        if name in groups and isinstance(value, dict):
            yield from _entries(value, groups, say, f"{name}.")
        else:
            yield name, value


def _inside(group: str, kinds: dict[str, Any], groups: set[str]) -> list[str]:
    """Names of the keys and groups directly below a group."""
    names = [name for name in [*kinds, *groups] if name.rpartition(".")[0] == group]
    return sorted(name.rpartition(".")[2] for name in names)


# ---- values ----


def _check_names(settings: Settings, say: Where) -> None:
    """Names must be known, and splits those of their data set."""
    source, target, network = settings.source, settings.target, settings.network
    for key, name, known in (
        ("network.backbone", network.backbone, BACKBONES),
        ("network.head", network.head, HEADS),
        ("source.name", source.name, DATASETS),
        ("target.name", target.name, DATASETS),
        ("flow.name", settings.flow.name, FLOWS),
    ):
        if name not in known:
            raise SettingError(f"{say(key)}: {unknown_name(key, name, known)}")
    for key, split, dataset in (
        ("source.split", source.split, source.name),
        ("target.split", target.split, target.name),
        ("evaluation.split", settings.evaluation.split, target.name),
    ):
        if split not in DATASETS[dataset].splits:
            text = unknown_name(key, split, DATASETS[dataset].splits)
            raise SettingError(f"{say(key)}: {text} These are the splits of data set '{dataset}'.")


def _check_numbers(settings: Settings, say: Where) -> None:
    """Numbers must be possible."""
    for key, limits in RANGES.items():
        check_number(f"{say(key)}: {key}", attrgetter(key)(settings), *limits)
    count = None  # for a list of devices, or for auto
    with suppress(ValueError):
        count = int(settings.training.devices)
    check_number(f"{say('training.devices')}: training.devices", count, -1, MOST_DEVICES)
    for name in ("gradient_clip", "rare_class_sampling"):
        key, number = f"training.{name}", getattr(settings.training, name)
        if number is not None and number <= 0:
            raise SettingError(f"{say(key)}: {key} must be above 0, or null for none, found {number}.")
    for group, domain in (("source", settings.source), ("target", settings.target)):
        check_frame_size(domain.size, f"{say(f'{group}.size')}: {group}.size")


def _check_method(settings: Settings, say: Where) -> None:
    """A method's own conditions, and what it needs of the network."""
    method, network, key = settings.method, settings.network, "method"
    try:
        settings.method_class.check(method)
        if network.auxiliary and method["aux_weight"] == 0:
            raise SettingError("method.aux_weight 0 leaves the auxiliary head untrained: set network.auxiliary: false.")
        key = "network.weights"
        if "teacher" in method and (network.weights or "pretrained:").startswith("pretrained:"):
            method["teacher"].check_untrained_start(method["warmup"], network.weights)
    except SettingError as error:
        raise SettingError(f"{say(key)}: {error}") from None


def check_frame_size(size: tuple[int, int] | None, name: str) -> None:
    """Refuse a ``(width, height)`` in pixels that the networks cannot take; ``name`` says where it was given."""
    if size is not None and (min(size) < SMALLEST_PX or any(side % GRID_PX for side in size)):
        raise SettingError(
            f"{name} is {list(size)}, but width and height must be at least {SMALLEST_PX} and divisible by {GRID_PX}. "
            f"The nearest such size is {list(nearest_frame_size(size))}."
        )
    if size is not None and size[0] * size[1] > LARGEST_PX:
        raise SettingError(f"{name} is {list(size)}: {size[0] * size[1]} pixels, but at most {LARGEST_PX} are read.")


def nearest_frame_size(size: tuple[int, int]) -> tuple[int, int]:
    """The nearest width and height in pixels that the networks can take."""
    width, height = (max(SMALLEST_PX, round(side / GRID_PX) * GRID_PX) for side in size)
    return width, height


def _check_domains(settings: Settings, say: Where) -> None:
    """Only an oracle may train on the data set that it adapts to."""
    source, target = settings.source, settings.target
    places = {
        key: _place(path, f"{say(key)}: {key}")
        for key, path in (
            ("source.root", source.root),
            ("target.root", target.root),
            ("evaluation.root", settings.evaluation.root),
            ("flow.cache", settings.flow.cache),
        )
    }
    same = source.name == target.name and places["source.root"] == places["target.root"]
    if same and not settings.oracle:
        raise SettingError(
            f"{say('source')}: source and target are the same data set, so training would read target labels. If an "
            "upper bound is what you want, say so with oracle: true; otherwise change source or target."
        )
    if settings.oracle and source.name != target.name:
        raise SettingError(
            f"{say('oracle')}: oracle: true says that training reads target labels, but source is '{source.name}' and "
            f"target is '{target.name}'. Make source the target's data set, or take oracle out."
        )


def _place(path: str | None, name: str) -> Path | None:
    """Where a path leads; ``name`` says where it was given."""
    try:
        return None if path is None else Path(path).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:  # ~nobody, a zero byte, links in a circle
        raise SettingError(f"{name} {path!r} is no path ({error}).") from None
