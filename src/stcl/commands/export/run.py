"""Export: from a finished run to a model folder; its graphs are checked against the network."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

from stcl import __version__
from stcl.commands.export.graph import GRAPH_FORMATS, Graph, list_graphs, require_onnx
from stcl.commands.export.parity import compare, random_pairs
from stcl.errors import DataError, SettingError, lookup
from stcl.files.writing import write_atomic
from stcl.labels import IGNORE
from stcl.methods.settings import check_frame_size
from stcl.models import VideoSegmenter
from stcl.protocols import RESOLUTION, SELECTION, protocol_of
from stcl.terminal import counted
from stcl.training.domains import training_clips
from stcl.training.model_folder import (
    ABOUT,
    CARD,
    FORMAT_FILES,
    SCHEMA,
    UNSPECIFIED,
    WEIGHTS,
    digest,
    new_model_folder,
    refuse_taken,
    without_places,
)
from stcl.training.networks import load_trained, save_trained
from stcl.training.provenance import describe_code
from stcl.training.run_folder import RunFolder
from stcl.training.settings import FlowSettings, Settings
from stcl.types import ClipSpec, FramePair

REAL_PAIRS = 2
"""Pairs of target frames that graphs are compared on, where there are any."""

Card = Callable[[dict[str, Any]], str]
"""``card(about) -> README.md``: this package's own is :func:`stcl.commands.export.card.render_card`."""


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Args:
        format: a name of :data:`stcl.training.model_folder.FORMAT_FILES`.
        size: ``(width, height)`` of the frames in pixels; None takes the target's training size.
        dynamic: graphs for any batch, width and height.
        license: of the weights, as an SPDX or Hugging Face identifier, e.g. ``cc-by-4.0``.
    """

    format: str = "safetensors"
    size: tuple[int, int] | None = None
    dynamic: bool = False
    license: str = UNSPECIFIED


def export(
    run: Path,
    out: Path,
    options: ExportOptions,
    card: Card,
    results: dict[str, Any] | None = None,
    force: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write the model folder of a finished run: whole, or not at all.

    Args:
        run: folder of a finished training.
        out: new folder; with ``force`` an earlier model in it is replaced.
        options: what to export.
        card: makes ``README.md`` of what ``model.json`` holds.
        results: what was measured, see :func:`stcl.commands.export.card.summarise`; None: nothing.
        force: replace a model folder.
        quiet: no progress bar.

    Returns:
        The contents of ``model.json``.
    """
    lookup(FORMAT_FILES, options.format, "format")
    check_license(options.license)
    if options.format == "onnx":
        require_onnx()
    if options.format == "safetensors" and options.dynamic:
        raise SettingError(
            "--dynamic is for graphs; a network of format 'safetensors' takes frames of any size anyway."
        )
    refuse_taken(out, force)
    folder = RunFolder(run)
    settings = folder.settings()
    network = load_trained(settings, folder.weights)
    size = check_size(settings, options)
    about = {**describe(settings, folder, network, options, size), "results": results}
    with new_model_folder(out, force) as place:
        if options.format == "safetensors":
            _write_network(network, settings, place / WEIGHTS)
        else:
            about |= _write_graphs(network, settings, options, size or (0, 0), place, quiet)
        about["files"] = {file.name: _entry(file) for file in sorted(place.iterdir())}
        write_atomic(place / CARD, card(about).encode())
        about["card"] = _entry(place / CARD)
        write_atomic(place / ABOUT, json.dumps(about, indent=1).encode())
    return about


def check_license(name: str) -> None:
    """A licence is an identifier, not a text."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", name):
        raise SettingError(f"--license is an identifier such as cc-by-4.0 or apache-2.0, found '{name}'.")


def check_size(settings: Settings, options: ExportOptions) -> tuple[int, int] | None:
    """Width and height of the frames: those asked for, or the target's; None: the network's files do not need one."""
    size = options.size or settings.target.size
    if size is None and options.format != "safetensors":
        raise SettingError("The run was trained on frames of their files' size: say which graphs are for, --size WxH.")
    check_frame_size(size, "--size")
    return size


def describe(
    settings: Settings, folder: RunFolder, network: VideoSegmenter, options: ExportOptions, size: tuple[int, int] | None
) -> dict[str, Any]:
    """What ``model.json`` says about the network and how it was made."""
    config = without_places(settings.as_dict())
    record = folder.read_record()
    names, palette = settings.space.names, settings.space.palette
    return {
        "schema": SCHEMA,
        "library": "stcl",
        "version": __version__,
        "format": options.format,
        "created": date.today().isoformat(),
        "name": settings.name,
        "title": settings.title,
        "license": options.license,
        "classes": list(names),
        "palette": palette[: len(names)].tolist(),
        "ignore": IGNORE,
        "protocol": protocol_of(settings.space).describe(),
        "input": {
            "channels": "RGB",
            "range": [0.0, 1.0],
            "dtype": "float32",
            "axes": ["batch", "channel", "height", "width"],
            "size": None if size is None else list(size),
            "dynamic": options.dynamic or options.format == "safetensors",
        },
        "output": {"stride": network.backbone.strides[network.stage], "upsampling": RESOLUTION},
        "network": {key: value for key, value in config["network"].items() if key != "weights"},
        "training": {
            "method": config["method"]["name"],
            "oracle": settings.oracle,
            "source": {"name": settings.source.name, "split": settings.source.split},
            "target": {"name": settings.target.name, "split": settings.target.split},
            "start": config["network"]["weights"],
            "steps": settings.training.steps,
            "seed": settings.seed,
            "selection": SELECTION,
            "code": record.get("code", describe_code()),
        },
        "parity": None,
        "graphs": {},
    }


def real_pairs(settings: Settings, size: tuple[int, int]) -> list[FramePair]:
    """A few pairs of unlabelled target frames with their flow; none where the data are not here."""
    domain, spec = replace(settings.target, size=size), ClipSpec(frames=(0, -1), flows=((0, -1),))
    try:
        clips = training_clips(replace(settings, flow=FlowSettings()), domain, spec)
        clips.thin(REAL_PAIRS)
        return [clips[item].map(lambda tensor: tensor[None]).to_float().pair() for item in range(len(clips))]
    except (DataError, SettingError):  # moved, damaged or removed: noise has to do
        return []


def _write_network(network: VideoSegmenter, settings: Settings, path: Path) -> None:
    config = yaml.safe_dump(without_places(settings.as_dict()), sort_keys=False, allow_unicode=True)
    save_trained(network, config, settings.space, path)


def _write_graphs(
    network: VideoSegmenter, settings: Settings, options: ExportOptions, size: tuple[int, int], place: Path, quiet: bool
) -> dict[str, Any]:
    """Write and open every graph, compare them with the network; returns ``graphs`` and ``parity``."""
    kind, graphs = GRAPH_FORMATS[options.format], list_graphs(network, size, options.dynamic)
    runs, described = {}, {}
    for graph in counted(graphs, f"exporting {options.format}", len(graphs), quiet):
        content = kind.write(graph, options.dynamic)
        write_atomic(place / f"{graph.name}{kind.suffix}", content)
        runs[graph.name] = kind.open(content)
        described[graph.name] = _signature(graph, f"{graph.name}{kind.suffix}", options.dynamic)
    parity = compare(network, runs, random_pairs(size, options.dynamic), real_pairs(settings, size))
    return {"graphs": described, "parity": parity._asdict()}


MEANING = {
    "image": "frames, RGB 0..1",
    "current": "output of 'frame' for the current frame",
    "previous": "output of 'frame' for the previous frame, before fusion",
    "flow": "optical flow current -> previous in pixels of the image: (u, v) by (x, y)",
    "scores": "unfused class scores",
    "fused": "fused class scores of the current frame",
}
"""Inputs and outputs of graphs, in words."""


def _signature(graph: Graph, file: str, dynamic: bool) -> dict[str, Any]:
    """Names, types and shapes of a graph's inputs and output; null stands for any number."""
    with torch.no_grad():
        output = graph.module(**graph.inputs)

    def entry(name: str, tensor: torch.Tensor) -> dict[str, Any]:
        batch, channels, *grid = tensor.shape
        shape = [None, channels, None, None] if dynamic else [batch, channels, *grid]
        return {"name": name, "dtype": "float32", "shape": shape, "meaning": MEANING[name]}

    inputs = [entry(name, tensor) for name, tensor in graph.inputs.items()]
    return {"file": file, "inputs": inputs, "outputs": [entry(graph.output, output)]}


def _entry(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": digest(file)}
