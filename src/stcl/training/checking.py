"""From plain data to settings: keys and values are checked, also against each other; a mistake gets one sentence."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from stcl.data import DATASETS
from stcl.errors import SettingError, unknown_name
from stcl.fields import Where, plain, read
from stcl.methods import METHODS
from stcl.training.settings import FlowSettings, Settings

READERS = {"quality": "dis", "model": "raft", "folder": "files"}
"""Settings of optical flow -> the provider that reads them."""


def check_settings(data: dict[str, Any], where: str | Where) -> Settings:
    """Turn plain data into :class:`Settings`; ``where`` says in messages where a key comes from."""
    origin: Where = where if callable(where) else lambda _: str(where)
    method = data.get("method")
    if not isinstance(method, dict) or "name" not in method:
        raise SettingError(
            f"{origin('method')}: the key method.name is missing. Say which method to train, e.g. "
            "method: {name: stcl}."
        )
    name = method["name"]
    if name not in [*METHODS]:
        raise SettingError(f"{origin('method.name')}: {unknown_name('method.name', name, METHODS)}")
    method_class = METHODS[name]
    own = {key: value for key, value in method.items() if key != "name"}
    chosen = read(method_class.Settings, own, origin, "method.")
    settings = read(Settings, data, origin, method=chosen, method_class=method_class)
    for key, mistake in _mistakes(settings):
        raise SettingError(f"{origin(key)}: {mistake}")
    resolved = plain(settings) | {"title": data.get("title"), "method": {"name": name, **plain(settings.method)}}
    return replace(settings, text=yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))


def _mistakes(settings: Settings) -> Iterator[tuple[str, str]]:
    """What does not fit together, each with a key that it stands at."""
    source, target, flow, network = settings.source, settings.target, settings.flow, settings.network
    for key, split, dataset in (
        ("source.split", source.split, source.name),
        ("target.split", target.split, target.name),
        ("evaluation.split", settings.evaluation.split, target.name),
    ):
        if split not in DATASETS[dataset].splits:
            text = unknown_name(key, split, DATASETS[dataset].splits)
            yield key, f"{text} These are the splits of data set '{dataset}'."
    for name, provider in READERS.items():
        value = getattr(flow, name)
        if flow.name != provider and value != getattr(FlowSettings(), name):
            text = f"flow.{name} {value} is for '{provider}', but flow.name is '{flow.name}', which does not read it."
            yield f"flow.{name}", f"{text} Take it out, or set flow.name to {provider}."
    if network.auxiliary and settings.method.aux_weight == 0:
        yield "method", "method.aux_weight 0 leaves the auxiliary head untrained: set network.auxiliary: false."
    text = settings.method.untrained_start(network.weights)
    if text and (network.weights or "pretrained:").startswith("pretrained:"):
        yield "network.weights", text
    paths = {
        "source.root": source.root,
        "target.root": target.root,
        "evaluation.root": settings.evaluation.root,
        "flow.cache": flow.cache,
    }
    places: dict[str, Path | None] = {}
    for key, path in paths.items():
        try:
            places[key] = None if path is None else Path(path).expanduser().resolve()
        except (RuntimeError, ValueError, OSError) as error:  # ~nobody, a zero byte, links in a circle
            yield key, f"{key} {path!r} is no path ({error})."
    if source.name == target.name and places["source.root"] == places["target.root"] and not settings.oracle:
        text = "source and target are the same data set, so training would read target labels. If an upper bound is "
        yield "source", f"{text}what you want, say so with oracle: true; otherwise change source or target."
    if settings.oracle and source.name != target.name:
        text = f"oracle: true says that training reads target labels, but source is '{source.name}' and target is "
        yield "oracle", f"{text}'{target.name}'. Make source the target's data set, or take oracle out."
