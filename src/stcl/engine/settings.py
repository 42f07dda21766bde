"""The configuration of a run: one YAML file, short because it states only what differs, plus command-line overrides.

``base: other.yaml`` inherits from a file beside it. Unknown keys are refused. :func:`load_settings` returns the resolved
settings; :meth:`Settings.dump` is what a run folder keeps.
"""

from argparse import ArgumentError
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, Namespace

from stcl.errors import SettingError, unknown_name
from stcl.flow import FLOWS
from stcl.data import DATASETS
from stcl.labels import LabelSpace, get_space
from stcl.methods import AdaptationMethod, get_method
from stcl.models import BACKBONES, HEADS


@dataclass(frozen=True)
class DomainSettings:
    """One side of the adaptation.

    Args:
        name: data set, e.g. ``synthia_seq``.
        root: its folder; a relative one is relative to the working directory.
        split: e.g. ``train``.
        size: training size ``[width, height]`` in pixels; None keeps the files' size.
        frames: ``all``, ``labelled`` or ``every:N``.
    """

    name: str
    root: str
    split: str = "train"
    size: tuple[int, int] | None = None
    frames: str = "all"


@dataclass(frozen=True)
class EvaluationSettings:
    """Where the trained network is measured: labelled frames of the target data set.

    Args:
        split: of the target data set.
        root: None takes the target's root.
        batch_size: clips at once; changes speed only.
        samples: how many frames are kept as pictures for the report.
    """

    split: str = "val"
    root: str | None = None
    batch_size: int = 4
    samples: int = 8


@dataclass(frozen=True)
class FlowSettings:
    """Optical flow.

    Args:
        name: provider, e.g. ``dis``.
        cache: folder that keeps computed flow; None computes it anew each time.
        quality: of ``dis``: ``ultrafast``, ``fast`` or ``medium``.
    """

    name: str = "dis"
    cache: str | None = None
    quality: Literal["ultrafast", "fast", "medium"] = "fast"


@dataclass(frozen=True)
class NetworkSettings:
    """The segmentation network.

    Args:
        backbone: e.g. ``small`` or ``resnet101``.
        head: main head.
        auxiliary: add the auxiliary head one stage earlier.
        weights: safetensors file to start from, or ``builtin:NAME`` for one that ships with the package.
        backbone_settings, head_settings: further arguments of theirs.
    """

    backbone: str = "small"
    head: str = "stcl"
    auxiliary: bool = True
    weights: str | None = None
    backbone_settings: dict[str, Any] | None = None
    head_settings: dict[str, Any] | None = None


@dataclass(frozen=True)
class TrainingSettings:
    """How long and on what to train.

    Args:
        steps: optimiser steps.
        batch_size: clips of each domain in a step.
        workers: loader processes; 0 loads in the main process.
        accelerator, devices, precision: as Lightning's Trainer names them.
        gradient_clip: largest gradient norm; None does not clip.
        log_every: steps between rows of ``metrics.csv``.
        checkpoint_every: steps between checkpoints.
        calibration_clips: clips that batch-norm statistics are recomputed on after the last step.
        channels_last: memory format of the network.
    """

    steps: int = 1000
    batch_size: int = 4
    workers: int = 1
    accelerator: str = "auto"
    devices: int | str = 1
    precision: str = "32-true"
    gradient_clip: float | None = None
    log_every: int = 10
    checkpoint_every: int = 500
    calibration_clips: int = 64
    channels_last: bool = True


@dataclass(frozen=True)
class Settings:
    """Everything a run depends on; see the classes of the groups for their keys."""

    name: str
    title: str
    seed: int
    space: LabelSpace
    oracle: bool
    source: DomainSettings
    target: DomainSettings
    evaluation: EvaluationSettings
    flow: FlowSettings
    network: NetworkSettings
    training: TrainingSettings
    method_class: type[AdaptationMethod]
    method: dict[str, Any]
    text: str

    def dump(self) -> str:
        """The resolved configuration as YAML."""
        return self.text

    def as_dict(self) -> dict[str, Any]:
        """The resolved configuration as plain data."""
        loaded: dict[str, Any] = yaml.safe_load(self.text)
        return loaded


def load_settings(path: Path, overrides: list[str] | None = None) -> Settings:
    """Read a configuration, apply ``--group.key value`` overrides, check it.

    Raises:
        SettingError: names the file, the key, what was found and what is known.
    """
    data = read_yaml(path)
    for key, value in parse_overrides(overrides or []).items():
        set_key(data, key, value)
    return check_settings(data, str(path))


def check_settings(data: dict[str, Any], where: str) -> Settings:
    """Turn plain data into :class:`Settings`; ``where`` names their origin in messages."""
    method = data.get("method")
    if not isinstance(method, dict) or "name" not in method:
        raise SettingError(f"{where}: the key method.name is missing. Say which method to train, e.g. method: {{name: stcl}}.")
    method_class = get_method(str(method["name"]))
    parser = _parser(method_class)
    _refuse_unknown(parser, data, where)
    try:
        parsed = parser.parse_object(data)
    except ArgumentError as error:
        raise SettingError(f"{where}: {' '.join(str(error).split())}") from None
    ready = parser.instantiate(parsed)
    settings = _assemble(ready, method_class, parser.dump(parsed))
    _check_values(settings, where)
    return settings


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration file with what it inherits through ``base``."""
    if not path.is_file():
        raise SettingError(f"There is no configuration file {path}. Shipped ones: see 'stcl train --help'.")
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise SettingError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise SettingError(f"{path} holds no settings. Expected keys such as source, target, method.")
    base = data.pop("base", None)
    if base is None:
        return data
    return merge(read_yaml(path.parent / str(base)), data)


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, group by group."""
    merged = deepcopy(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = deepcopy(value)
    return merged


def parse_overrides(words: list[str]) -> dict[str, Any]:
    """``--group.key value`` or ``--group.key=value`` pairs; values are read as YAML."""
    pairs: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise SettingError(f"'{word}' is not an override. Overrides look like --training.steps 1000.")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise SettingError(f"The override --{key} has no value.")
            value = rest.pop(0)
        pairs[key] = yaml.safe_load(value)
    return pairs


def set_key(data: dict[str, Any], key: str, value: Any) -> None:
    """Set ``group.key`` in nested data."""
    *groups, last = key.split(".")
    for group in groups:
        below = data.setdefault(group, {})
        if not isinstance(below, dict):
            raise SettingError(f"The override --{key} goes into '{group}', which holds {below!r} and no keys.")
        data = below
    data[last] = value


def _parser(method_class: type[AdaptationMethod]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--name", type=str, required=True, help="Name of the run in tables.")
    parser.add_argument("--title", type=str | None, default=None, help="How pictures and tables call it.")
    parser.add_argument("--seed", type=int, default=0, help="Determines every random draw.")
    parser.add_argument("--space", type=str, required=True, help="Label space.")
    parser.add_argument("--oracle", type=bool, default=False, help="Trains with target labels: an upper bound.")
    parser.add_argument("--source", type=DomainSettings)
    parser.add_argument("--target", type=DomainSettings)
    parser.add_argument("--evaluation", type=EvaluationSettings, default=EvaluationSettings())
    parser.add_argument("--flow", type=FlowSettings, default=FlowSettings())
    parser.add_argument("--network", type=NetworkSettings, default=NetworkSettings())
    parser.add_argument("--training", type=TrainingSettings, default=TrainingSettings())
    parser.add_argument("--method.name", type=str)
    parser.add_class_arguments(method_class, "method", skip={"network", "space", "seed"}, instantiate=False)
    return parser


def _refuse_unknown(parser: ArgumentParser, data: dict[str, Any], where: str) -> None:
    """Name the first unknown key and the nearest known one."""
    known = set(parser.get_defaults(skip_validation=True).keys(branches=True)) | set(_keys(parser))
    for key in _flatten(data):
        if key in known or key.startswith(("network.backbone_settings.", "network.head_settings.")):
            continue
        group = key.rpartition(".")[0]
        beside = sorted(name for name in known if name.rpartition(".")[0] == group)
        parent = group
        while not beside and parent:
            parent = parent.rpartition(".")[0]
            beside = sorted(name for name in known if name.rpartition(".")[0] == parent)
        raise SettingError(f"{where}: {unknown_name('key', key, beside)}")


def _keys(parser: ArgumentParser) -> list[str]:
    return [action.dest for action in parser._actions]


def _flatten(data: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        keys += _flatten(value, name + ".") if isinstance(value, dict) and value else [name]
    return keys


def _assemble(ready: Namespace, method_class: type[AdaptationMethod], text: str) -> Settings:
    method = dict(vars(ready.method))
    method.pop("name")
    plain = {key: value for key, value in vars(ready).items() if key not in ("method", "space", "title")}
    return Settings(
        **plain,
        title=ready.title or ready.name,
        space=get_space(ready.space),
        method_class=method_class,
        method=method,
        text=text,
    )


def _check_values(settings: Settings, where: str) -> None:
    for kind, name, known in (
        ("network.backbone", settings.network.backbone, BACKBONES),
        ("network.head", settings.network.head, HEADS),
        ("source.name", settings.source.name, DATASETS),
        ("target.name", settings.target.name, DATASETS),
        ("flow.name", settings.flow.name, FLOWS),
    ):
        if name not in known:
            raise SettingError(f"{where}: {unknown_name(kind, name, known)}")
    for group, domain in (("source", settings.source), ("target", settings.target)):
        if domain.size is not None and (min(domain.size) < 32 or domain.size[0] % 8 or domain.size[1] % 8):
            raise SettingError(
                f"{where}: {group}.size is {list(domain.size)}, but width and height must be at least 32 and divisible by 8."
            )
    for key, value in (("steps", settings.training.steps), ("batch_size", settings.training.batch_size)):
        if value < 1:
            raise SettingError(f"{where}: training.{key} must be at least 1, not {value}.")
    same = (settings.source.name, settings.source.root) == (settings.target.name, settings.target.root)
    if same and not settings.oracle:
        raise SettingError(
            f"{where}: source and target are the same data set, so training would read target labels. If an upper bound is "
            "what you want, say so with oracle: true; otherwise change source or target."
        )
