"""Starting weights from a network of other classes or parts: the backbone whole, the heads class by class."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stcl.errors import CheckpointError
from stcl.files.plain import load_yaml
from stcl.labels import SPACES
from stcl.models.segmenter import VideoSegmenter
from stcl.models.weights.files import read_tensor_file
from stcl.models.weights.own import compare_states
from stcl.models.weights.published import PublishedNetwork
from stcl.models.weights.recognise import SPACE_OF, label_space, recognise

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What batch norm has in a file and other norms, whose scale and shift have the same names, have not."""

SCORES = "head.head.1.weight"
"""Of the STCL head: hidden channels to class scores."""


class Start(NamedTuple):
    """What a file lends.

    Attributes:
        tensors: in a segmenter's names.
        classes: of its heads, in train-id order; empty where it has none.
        parts: of a segmenter that must be in it.
        network: what is known of other people's.
    """

    tensors: dict[str, Tensor]
    classes: tuple[str, ...]
    parts: frozenset[str]
    network: PublishedNetwork | None = None


def transfer_weights(
    network: VideoSegmenter, path: Path, classes: tuple[str, ...], backbone_settings: Mapping[str, Any] | None = None
) -> list[str]:
    """Start ``network`` from a file that may have been trained on other classes.

    With the same classes every tensor is loaded. Otherwise the backbone is, and each head's rows are copied by class
    NAME; classes that the file lacks keep their random start, and the temporal fusion keeps [identity, 0]. It also does
    so where the file has none. A fusion or batch-norm statistics that only the file has are left aside.

    The published checkpoints of :mod:`~stcl.models.weights.recognise` lend what they have; a part that one lacks, be
    it all the heads, keeps its random start. A TPS head starts an STCL head so that its scores are the same
    (function-preserving, as in Chen et al. 2016, arXiv 1511.05641).

    Args:
        network: changed in place.
        path: weights or checkpoint of 'stcl train', or a published checkpoint.
        classes: of ``network``, in train-id order; also those of a published one whose number of classes says nothing.
        backbone_settings: of the network's backbone, defaults included; compared with what a published file needs.

    Returns:
        Names of the classes whose head rows were not found in the file.
    """
    start = _read_start(path, classes)
    state = network.state_dict()
    rows = [(classes.index(name), start.classes.index(name)) for name in classes if name in start.classes]
    if start.classes and not rows:
        raise CheckpointError(
            f"'{path}' was trained on other classes ({', '.join(start.classes)}), none of which this network has "
            f"({', '.join(classes)}). Choose another file, or another label space."
        )
    wanted = {}
    for name, theirs in start.tensors.items():
        ours = state.get(name)
        if name.startswith("fusion."):
            if ours is not None and start.classes == classes:
                wanted[name] = theirs
        elif (
            ours is not None
            and "head." in name
            and min(ours.ndim, theirs.ndim) > 0  # a counter is no row
            and ours.shape[1:] == theirs.shape[1:]
            and (len(ours), len(theirs)) == (len(classes), len(start.classes))
        ):
            wanted[name] = _copy_rows(ours, theirs, rows)
        elif ours is not None or name.rpartition(".")[2] not in STATISTICS:
            wanted[name] = theirs
    if SCORES in state and SCORES not in wanted and "head.conv2d_list.0.weight" in wanted:
        wanted |= _widen_head(start.tensors, state, rows)
    needed = {name: t for name, t in state.items() if name in wanted or name.partition(".")[0] in start.parts}
    _check_fit(start, path, compare_states(wanted, needed), backbone_settings or {})
    network.load_state_dict({**state, **wanted})
    return [name for name in classes if name not in start.classes]


def _check_fit(start: Start, path: Path, differences: list[str], built: Mapping[str, Any]) -> None:
    """Refuse other tensors; and other settings, as the same tensors compute something else with another stride."""
    published = start.network
    title = f" ({published.title})" if published else ""
    if differences:
        keys = ""
        if published is not None:
            head = f", network.head {published.head}" if published.head else ""
            keys = f" (network.backbone {published.backbone}{head})"
        raise CheckpointError(
            f"'{path}'{title} belongs to another network and cannot start this one: {'; '.join(differences)}. Set "
            f"network to what the file was trained with{keys}, or choose another file."
        )
    needs = published.backbone_settings if published else {}
    wrong = {key: value for key, value in needs.items() if built.get(key, value) != value}
    if wrong:
        keys = " ".join(f"--network.backbone_settings.{key} {value}" for key, value in wrong.items())
        raise CheckpointError(
            f"'{path}'{title} was trained with other settings of its backbone than "
            f"{', '.join(f'{key} {built[key]}' for key in wrong)}. Set: {keys}"
        )


def _read_start(path: Path, classes: tuple[str, ...]) -> Start:
    tensors, metadata, _ = read_tensor_file(path)
    own_parts = frozenset({"backbone", "head", "aux_head"})
    if "classes" in metadata:
        try:
            stored = json.loads(metadata["classes"])
        except (json.JSONDecodeError, RecursionError):
            stored = None
        if not isinstance(stored, list) or not all(isinstance(name, str) for name in stored):
            raise CheckpointError(
                f"'{path}' does not say which classes it was trained on (metadata 'classes', a JSON list of names), so "
                "it was not written by stcl. Use a model.safetensors of 'stcl train'."
            )
        return Start(tensors, tuple(stored), own_parts)
    if "config" in metadata:
        try:
            return Start(tensors, SPACES[load_yaml(metadata["config"])["space"]].names, own_parts)
        except (ValueError, LookupError, TypeError):
            raise CheckpointError(
                f"'{path}' does not say which classes it was trained on (key 'space' of its configuration). Use a file "
                "of this version of 'stcl train'."
            ) from None
    network = recognise(tensors, path)
    parts = frozenset({"backbone", *(name.partition(".")[0] for name in network.tensors)}) - {"fusion"}
    if network.classes is None:
        stored_classes: tuple[str, ...] = ()
    elif network.classes not in SPACE_OF and network.classes == len(classes):
        stored_classes = classes
    else:
        stored_classes = label_space(network, path).names
    return Start(network.tensors, stored_classes, parts, network)


def _copy_rows(ours: Tensor, theirs: Tensor, rows: list[tuple[int, int]]) -> Tensor:
    """Our rows with theirs in place of those of the same classes."""
    to, source = (torch.tensor(column, dtype=torch.long) for column in zip(*rows, strict=True))
    mixed = ours.clone()
    mixed[to] = theirs[source].to(ours.dtype)  # the file may hold half precision
    return mixed


def _widen_head(theirs: dict[str, Tensor], state: dict[str, Tensor], rows: list[tuple[int, int]]) -> dict[str, Tensor]:
    """An STCL head with the scores of a TPS head: hidden channel c is the score of class c, the others are random."""
    wide = {name: tensor for name, tensor in theirs.items() if name.startswith("head.")}
    for name, tensor in wide.items():
        if name in state and len(state[name]) >= len(state[SCORES]) and state[name].shape[1:] == tensor.shape[1:]:
            wide[name] = _copy_rows(state[name], tensor, rows)
    scores = state[SCORES].clone()
    for row, _ in rows:
        scores[row] = 0
        scores[row, row] = 1
    return {**wide, SCORES: scores}
