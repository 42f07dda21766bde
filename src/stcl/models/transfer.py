"""Starting weights from a network of other classes: the backbone whole, the heads class by class."""

import json
from pathlib import Path

import torch
from torch import Tensor

from stcl.errors import CheckpointError
from stcl.models.segmenter import VideoSegmenter
from stcl.models.weights import compare_states, load_weights, read_weights


def transfer_weights(network: VideoSegmenter, path: Path, classes: tuple[str, ...]) -> list[str]:
    """Start ``network`` from a file that may have been trained on other classes.

    With the same classes every tensor is loaded. Otherwise the backbone is, and each head's rows are copied by class
    NAME; classes that the file lacks keep their random start, and the temporal fusion keeps [identity, 0].

    Args:
        network: changed in place.
        path: file of :func:`~stcl.models.weights.save_weights` with the metadata ``classes`` (JSON list of names).
        classes: of ``network``, in train-id order.

    Returns:
        Names of the classes whose head rows were not found in the file.
    """
    tensors, metadata = read_weights(path)
    stored = json.loads(metadata.get("classes", "null"))
    if stored is None:
        raise CheckpointError(f"'{path}' does not say which classes it was trained on (metadata 'classes').")
    if tuple(stored) == classes:
        load_weights(network, path)
        return []
    state = network.state_dict()
    rows = [(classes.index(name), stored.index(name)) for name in classes if name in stored]
    wanted = {name: tensor for name, tensor in tensors.items() if not name.startswith("fusion.")}
    for name in [name for name in wanted if "head." in name]:
        own = state.get(name)
        if own is not None and len(wanted[name]) == len(stored) and len(own) == len(classes):
            wanted[name] = _copy_rows(own, wanted[name], rows)
    differences = compare_states(wanted, {name: t for name, t in state.items() if not name.startswith("fusion.")})
    if differences:
        raise CheckpointError(f"'{path}' cannot start this network: {'; '.join(differences)}.")
    network.load_state_dict({**state, **wanted})
    return [name for name in classes if name not in stored]


def _copy_rows(own: Tensor, other: Tensor, rows: list[tuple[int, int]]) -> Tensor:
    mine, theirs = (torch.tensor(column, dtype=torch.long) for column in zip(*rows, strict=True))
    mixed = own.clone()
    mixed[mine] = other[theirs]
    return mixed
