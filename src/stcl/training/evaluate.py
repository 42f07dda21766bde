"""Evaluation: a trained network on labelled target frames, one confusion matrix, one ``results.json``."""

import json
import time
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from stcl.data import ClipDataset, make_eval_loader
from stcl.data.io import write_image, write_label
from stcl.errors import DataError, SettingError
from stcl.files.folders import OwnFiles, hold_lock, refuse_others
from stcl.files.plain import json_number
from stcl.files.writing import write_atomic
from stcl.models import VideoSegmenter
from stcl.models.norms import FixedBatchNorm, norm_layers
from stcl.ops.losses import upsample
from stcl.ops.metrics import ConfusionMatrix, iou_from_confusion, leave_out, mean_iou
from stcl.ops.processes import gather, rank, sum_over_processes, world_size
from stcl.protocols import protocol_of
from stcl.terminal import counted
from stcl.training.devices import is_first_process, launched_devices, quiet_lightning
from stcl.training.domains import evaluation_clips
from stcl.training.networks import load_trained
from stcl.training.provenance import describe_code, describe_environment
from stcl.training.run_folder import RunFolder
from stcl.training.settings import Settings
from stcl.types import VideoClip

RESULTS = "results.json"
SAMPLES, LIST = "samples", "samples.json"
PARTS = ("frame", "truth", "prediction")
SCHEMA = 1
VERB = "stcl evaluate"


def evaluate(
    run: Path,
    split: str | None = None,
    root: Path | None = None,
    out: Path | None = None,
    samples: int | None = None,
    quiet: bool = False,
    devices: int = 1,
) -> dict[str, Any]:
    """Measure a finished run on labelled frames of its target data set.

    Args:
        run: folder of a finished training.
        split: of the target data set; None takes the configuration's.
        root: folder of the target data set; None takes the configuration's.
        out: where ``results.json`` and ``samples/`` go; None takes ``run``.
        samples: how many frames to keep as pictures, evenly spread; None takes the configuration's.
        quiet: no progress bar.
        devices: how many share the frames; the result is the same. Each further one starts this program once more,
            unless torchrun or SLURM has done so.

    Returns:
        The contents of ``results.json``; scores in percent.
    """
    folder, out = RunFolder(run), out or run
    settings = folder.settings()
    network = load_trained(settings, folder.weights)
    clips = evaluation_clips(settings, split, None if root is None else str(root))
    samples = min(settings.evaluation.samples if samples is None else samples, len(clips))
    kept = {*np.linspace(0, len(clips) - 1, samples).round().astype(int).tolist()}  # indices of clips, evenly spread
    busy = f"Another process is measuring into {out} right now. Wait for it, or choose another folder with --out."
    with hold_lock(out / ".evaluate.lock", busy) if is_first_process() else nullcontext():
        names = [f"{part}/{clips.refs(item)[0].name}.png" for part in PARTS for item in sorted(kept)]
        if is_first_process():
            _check_samples(out, names)
        launch(settings, devices)
        started = time.monotonic()
        if rank() == 0:
            _begin(out, names)
        counts = confusion_of(network.to(device_of(settings)), clips, settings, out / SAMPLES, kept, quiet).cpu()
        if not counts.any():
            raise DataError(
                f"{clips.dataset}: no labelled pixel in {len(clips)} frames has a class of '{settings.space.name}'."
            )
        seconds = {"train": folder.seconds(), "evaluate": round(time.monotonic() - started, 1)}
        split = split or settings.evaluation.split
        results = describe_result(settings, network, split, len(clips), counts, seconds)
        if rank() == 0:
            write_atomic(out / RESULTS, json.dumps(results, indent=1).encode())
        gather(None)  # whoever returns may read the file
    return results


def device_of(settings: Settings) -> str:
    """Where evaluation runs: on a GPU where there is one, unless the run was trained on the CPU by choice."""
    return "cuda" if torch.cuda.is_available() and settings.training.accelerator != "cpu" else "cpu"


def launch(settings: Settings, devices: int) -> None:
    """Start or join one process for each device, once; afterwards its device is the current one of each."""
    here, nodes = launched_devices(devices)
    if world_size() > 1 or (here, nodes) == (1, 1):
        return
    quiet_lightning()
    try:
        Fabric(accelerator=device_of(settings), devices=here, num_nodes=nodes, strategy="ddp").launch()
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise SettingError(
            f"Evaluation on {here} devices is not possible here: {' '.join(str(error).split())} One device always is."
        ) from error


def _check_samples(out: Path, names: list[str]) -> tuple[OwnFiles, bool]:
    """The pictures of an evaluation, and whether an earlier result vouches for them; others' files are refused."""
    samples, result = OwnFiles(out / SAMPLES, LIST, VERB), OwnFiles(out, RESULTS, VERB).read()
    if result is None and samples.read() is None:
        refuse_others(out, [SAMPLES], (), VERB)
    samples.check(names, result is not None)
    return samples, result is not None


def _begin(out: Path, names: list[str]) -> None:
    """Remove an earlier result: pictures of two evaluations never mix, and an interrupted one leaves no result."""
    samples, earlier = _check_samples(out, names)
    samples.begin(names, earlier)
    (out / RESULTS).unlink(missing_ok=True)


@torch.no_grad()
def confusion_of(
    network: VideoSegmenter, clips: ClipDataset, settings: Settings, folder: Path, kept: set[int], quiet: bool
) -> Tensor:
    """The confusion matrix of all clips, ``(C, C)`` int64, row the truth; the same in every process.

    Those ``kept`` go to ``folder`` as PNGs of one name in ``frame/``, ``truth/`` and ``prediction/``. Every process
    takes its share of the clips, process 0 among them those that are kept.
    """
    device = next(network.parameters()).device
    share = [i for i in range(len(clips)) if rank() == (0 if i in kept else i % world_size())]
    loader = make_eval_loader(clips, settings.evaluation.batch_size, pin_memory=device.type == "cuda", share=share)
    matrix = ConfusionMatrix(len(settings.space)).to(device)
    protocol = protocol_of(settings.space)
    ignored = protocol.ids(protocol.ignored)
    positions, problem = iter(share), ""
    try:
        for clip in counted(loader, "evaluating", len(loader), quiet or rank() > 0):
            ids = predicted_ids(network, clip.to(device))
            matrix.update(ids, leave_out(ids, clip.label(0).to(device), ignored))
            for row, name in enumerate(clip.names):
                if next(positions) in kept:
                    frame, truth, prediction = (folder / part / f"{name}.png" for part in PARTS)
                    write_image(frame, clip.frame(0)[row].permute(1, 2, 0).numpy())
                    write_label(truth, clip.label(0)[row].numpy().astype(np.uint8))
                    write_label(prediction, ids[row].cpu().numpy().astype(np.uint8))
    except DataError as error:
        problem = str(error)
    for message in filter(None, gather(problem)):  # all end together, or one would wait for the others for ever
        raise DataError(message)
    return sum_over_processes(matrix.counts)


def predicted_ids(network: VideoSegmenter, clip: VideoClip) -> Tensor:
    """Train ids ``(B, H, W)`` of the clip's frames t, at the labels' size where there are labels."""
    size = clip.label(0).shape[-2:] if clip.labels is not None else clip.size
    scores = upsample(network(clip.to_float().pair()).logits.float(), (size[0], size[1]))
    return scores.max(1).indices  # as argmax(1), and several times as fast on a CPU


def statistics_of(network: VideoSegmenter, settings: Settings) -> str:
    """What the network's norms normalise with, in words."""
    if norm_layers(network):
        return f"{settings.method.evaluation_statistics} batch-norm statistics"
    fixed = any(isinstance(layer, FixedBatchNorm) for layer in network.modules())
    return "those of the starting weights" if fixed else "each frame's own"


def describe_result(
    settings: Settings, network: VideoSegmenter, split: str, frames: int, counts: Tensor, seconds: dict[str, Any]
) -> dict[str, Any]:
    """Everything ``results.json`` holds."""
    source, target, protocol = settings.source, settings.target, protocol_of(settings.space)
    means = {title: mean_iou(counts, protocol.ids(classes)) for title, classes in protocol.means.items()}
    scores = iou_from_confusion(counts).tolist()
    return {
        "schema": SCHEMA,
        "name": settings.name,
        "title": settings.title,
        "method": settings.as_dict()["method"]["name"],
        "oracle": settings.oracle,
        "protocol": protocol.describe(),
        "data": {
            "source": f"{source.name}/{source.split}",
            "target": f"{target.name}/{target.split}",
            "split": split,
            "frames": frames,
        },
        "miou": json_number(100 * mean_iou(counts, settings.space.reported)),
        "means": {title: json_number(100 * mean) for title, mean in means.items()},
        "iou": {name: json_number(100 * iou) for name, iou in zip(settings.space.names, scores, strict=True)},
        "confusion": counts.tolist(),
        "selection": protocol.selection,
        "statistics": statistics_of(network, settings),
        "seed": settings.seed,
        "steps": settings.training.steps,
        "config": settings.as_dict(),
        "code": describe_code(),
        "environment": describe_environment(device_of(settings)),
        "seconds": seconds,
        "date": date.today().isoformat(),
    }
