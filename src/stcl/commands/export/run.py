"""Export: from a finished run to a model folder; its graphs are checked against the network."""

import json
import re
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml

from stcl import __version__
from stcl.commands.export.card import render_card, summarise
from stcl.commands.export.graph import GRAPH_FORMATS, Graph, check_parity, list_graphs, random_pairs, require_onnx
from stcl.errors import DataError, SettingError, lookup
from stcl.files.writing import write_atomic
from stcl.labels import IGNORE
from stcl.methods.settings import check_frame_size
from stcl.models import VideoSegmenter
from stcl.pages.results import read_result
from stcl.protocols import RESOLUTION, SELECTION, protocol_of
from stcl.terminal import counted
from stcl.training.domains import training_clips
from stcl.training.evaluate import RESULTS
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

MEANING = {
    "image": "frames, RGB 0..1",
    "current": "output of 'frame' for the current frame",
    "previous": "output of 'frame' for the previous frame, before fusion",
    "flow": "optical flow current -> previous in pixels of the image: (u, v) by (x, y)",
    "scores": "unfused class scores",
    "fused": "fused class scores of the current frame",
}
"""Inputs and outputs of graphs, in words."""


def export_run(
    run: Path,
    out: Path,
    format: str = "safetensors",
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    license: str = UNSPECIFIED,
    force: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write the model folder of a finished run: whole, or not at all; the arguments are those of :func:`stcl.export`.

    Returns:
        The contents of ``model.json``.
    """
    lookup(FORMAT_FILES, format, "format")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", license):
        raise SettingError(f"--license is an identifier such as cc-by-4.0 or apache-2.0, found '{license}'.")
    if format == "onnx":
        require_onnx()
    if format == "safetensors" and dynamic:
        raise SettingError(
            "--dynamic is for graphs; a network of format 'safetensors' takes frames of any size anyway."
        )
    refuse_taken(out, force)
    folder = RunFolder(run)
    settings = folder.settings()
    network = load_trained(settings, folder.weights)
    size = size or settings.target.size
    if size is None and format != "safetensors":
        raise SettingError("The run was trained on frames of their files' size: say which graphs are for, --size WxH.")
    check_frame_size(size, "--size")
    results = summarise(read_result(run)) if (run / RESULTS).is_file() else None
    about = {**_record(settings, folder, network, format, size, dynamic, license), "results": results}
    with new_model_folder(out, force) as new_folder:
        if size is None or format == "safetensors":
            config = yaml.safe_dump(without_places(settings.as_dict()), sort_keys=False, allow_unicode=True)
            save_trained(network, config, settings.space, new_folder / WEIGHTS)
        else:
            about |= _write_graphs(network, settings, format, size, dynamic, new_folder, quiet)
        about["files"] = {file.name: _entry(file) for file in sorted(new_folder.iterdir())}
        write_atomic(new_folder / CARD, render_card(about).encode())
        about["card"] = _entry(new_folder / CARD)
        write_atomic(new_folder / ABOUT, json.dumps(about, indent=1).encode())
    return about


def _record(
    settings: Settings,
    folder: RunFolder,
    network: VideoSegmenter,
    format: str,
    size: tuple[int, int] | None,
    dynamic: bool,
    license: str,
) -> dict[str, Any]:
    """What ``model.json`` says about the network and how it was made."""
    config = without_places(settings.as_dict())
    names, palette = settings.space.names, settings.space.palette
    return {
        "schema": SCHEMA,
        "library": "stcl",
        "version": __version__,
        "format": format,
        "created": date.today().isoformat(),
        "name": settings.name,
        "title": settings.title,
        "license": license,
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
            "dynamic": dynamic or format == "safetensors",
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
            "code": folder.read_record().get("code", describe_code()),
        },
        "parity": None,
        "graphs": {},
    }


def _write_graphs(
    network: VideoSegmenter,
    settings: Settings,
    format: str,
    size: tuple[int, int],
    dynamic: bool,
    new_folder: Path,
    quiet: bool,
) -> dict[str, Any]:
    """Write and open every graph, compare them with the network; returns ``graphs`` and ``parity``."""
    kind, graphs = GRAPH_FORMATS[format], list_graphs(network, size, dynamic)
    runs, signatures = {}, {}
    for graph in counted(graphs, f"exporting {format}", len(graphs), quiet):
        content, file = kind.write(graph, dynamic), f"{graph.name}{kind.suffix}"
        write_atomic(new_folder / file, content)
        runs[graph.name] = kind.open(content)
        signatures[graph.name] = {"file": file, **_signature(graph, dynamic)}
    parity = check_parity(network, runs, random_pairs(size, dynamic), _real_pairs(settings, size))
    return {"graphs": signatures, "parity": parity._asdict()}


def _real_pairs(settings: Settings, size: tuple[int, int]) -> list[FramePair]:
    """A few pairs of unlabelled target frames with their flow; none where the data are not here."""
    domain, spec = replace(settings.target, size=size), ClipSpec(frames=(0, -1), flows=((0, -1),))
    try:
        clips = training_clips(replace(settings, flow=FlowSettings()), domain, spec)
        clips.thin(REAL_PAIRS)
        return [clips[item].map(lambda tensor: tensor[None]).to_float().pair() for item in range(len(clips))]
    except (DataError, SettingError):  # moved, damaged or removed: noise has to do
        return []


def _signature(graph: Graph, dynamic: bool) -> dict[str, Any]:
    """Names, types and shapes of a graph's inputs and output; null stands for any number."""
    with torch.no_grad():
        output = graph.module(**graph.inputs)

    def port(name: str, tensor: torch.Tensor) -> dict[str, Any]:
        batch, channels, *grid = tensor.shape
        shape = [None, channels, None, None] if dynamic else [batch, channels, *grid]
        return {"name": name, "dtype": "float32", "shape": shape, "meaning": MEANING[name]}

    return {"inputs": [port(*item) for item in graph.inputs.items()], "outputs": [port(graph.output, output)]}


def _entry(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": digest(file)}
