"""Starting weights from a network of other classes or parts: the backbone whole, the heads class by class."""

import json
from pathlib import Path

import torch
from torch import Tensor

from stcl.errors import CheckpointError
from stcl.models.segmenter import VideoSegmenter
from stcl.models.weights import compare_states, read_weights

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What batch norm has in a file and other norms, whose scale and shift have the same names, have not."""


def transfer_weights(network: VideoSegmenter, path: Path, classes: tuple[str, ...]) -> list[str]:
    """Start ``network`` from a file that may have been trained on other classes.

    With the same classes every tensor is loaded. Otherwise the backbone is, and each head's rows are copied by class
    NAME; classes that the file lacks keep their random start, and the temporal fusion keeps [identity, 0]. It also does
    so where the file has none. A fusion or batch-norm statistics that only the file has are left aside.

    Args:
        network: changed in place.
        path: file of :func:`~stcl.models.weights.save_weights` with the metadata ``classes`` (JSON list of names).
        classes: of ``network``, in train-id order.

    Returns:
        Names of the classes whose head rows were not found in the file.
    """
    tensors, metadata = read_weights(path)
    stored = _stored_classes(metadata, path)
    same = tuple(stored) == classes
    state = network.state_dict()
    rows = [(classes.index(name), stored.index(name)) for name in classes if name in stored]
    if not rows:
        raise CheckpointError(
            f"'{path}' was trained on other classes ({', '.join(stored)}), none of which this network has "
            f"({', '.join(classes)}). Choose another file, or another label space."
        )
    wanted = {name: tensor for name, tensor in tensors.items() if _is_lent(name, name in state, same)}
    for name in [name for name in wanted if "head." in name]:
        own, other = state.get(name), wanted[name]
        if (
            own is not None
            and own.shape[1:] == other.shape[1:]
            and (len(own), len(other)) == (len(classes), len(stored))
        ):
            wanted[name] = _copy_rows(own, other, rows)
    needed = {name: t for name, t in state.items() if name in wanted or not name.startswith("fusion.")}
    differences = compare_states(wanted, needed)
    if differences:
        raise CheckpointError(
            f"'{path}' belongs to another network and cannot start this one: {'; '.join(differences)}. Set network to "
            "what the file was trained with, or choose another file."
        )
    network.load_state_dict({**state, **wanted})
    return [name for name in classes if name not in stored]


def _is_lent(name: str, has_place: bool, same_classes: bool) -> bool:
    if name.startswith("fusion."):
        return has_place and same_classes
    return has_place or name.rpartition(".")[2] not in STATISTICS


def _stored_classes(metadata: dict[str, str], path: Path) -> list[str]:
    try:
        stored = json.loads(metadata.get("classes", ""))
    except json.JSONDecodeError:
        stored = None
    if not isinstance(stored, list) or not all(isinstance(name, str) for name in stored):
        raise CheckpointError(
            f"'{path}' does not say which classes it was trained on (metadata 'classes', a JSON list of names), so it "
            "was not written by stcl. Use a model.safetensors of 'stcl train'."
        )
    return stored


def _copy_rows(own: Tensor, other: Tensor, rows: list[tuple[int, int]]) -> Tensor:
    mine, theirs = (torch.tensor(column, dtype=torch.long) for column in zip(*rows, strict=True))
    mixed = own.clone()
    mixed[mine] = other[theirs].to(own.dtype)  # the file may hold half precision
    return mixed
