"""Weights on disk: safetensors with a few words of metadata; loaded as data, never as code."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from stcl.errors import CheckpointError
from stcl.files.writing import open_file, write_atomic

LARGEST_SHARE = 8
"""How many times a file's size its tensors may have: some stand under several names, as a network and its average."""

SMALL_BYTES = 2**26
"""What the tensors of any file may have."""

SHOWN = 5
"""How many names of each kind a message lists."""


def save_weights(network: nn.Module, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write the state of ``network`` to ``path``: whole or not at all, and the same bytes for the same state.

    Args:
        network: any module.
        path: a ``.safetensors`` file; its folder is made.
        metadata: what a reader should know (classes, backbone, step, licence), as words.
    """
    # clone: safetensors refuses tensors that share memory
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}
    write_atomic(Path(path), _in_order(save(tensors, metadata or {})), durable=True)  # they end a run


def load_weights(network: nn.Module, path: str | Path) -> dict[str, str]:
    """Load ``path`` into ``network`` and return the file's metadata; nothing changes unless every tensor fits."""
    tensors, metadata = read_weights(path)
    differences = compare_states(tensors, network.state_dict())
    if differences:
        short = {key: value for key, value in metadata.items() if "\n" not in value}  # not a whole configuration
        words = ", ".join(f"{key}: {value}" for key, value in sorted(short.items()))
        raise CheckpointError(
            f"'{path}' belongs to another network than this {type(network).__name__}: {'; '.join(differences)}. Build "
            f"the network with the settings of the file{f' ({words[:300]})' if words else ''}, or choose another file."
        )
    network.load_state_dict(tensors)
    return metadata


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and metadata of a safetensors file."""
    path = Path(path)
    try:
        with open_file(path) as opened:
            # safetensors takes names in UTF-8, which names of files need not be on Unix
            plain = str(path).isprintable() or not Path("/dev/fd").is_dir()
            with safe_open(path if plain else f"/dev/fd/{opened.fileno()}", framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
                metadata = file.metadata() or {}
    except FileNotFoundError:
        raise CheckpointError(f"There is no weights file '{path}'. Check the path, or train a network first.") from None
    except OSError as error:
        raise CheckpointError(f"Weights file '{path}' cannot be read: {error.strerror}. Check the path.") from None
    except SafetensorError as error:
        raise CheckpointError(
            f"'{path}' is not a whole safetensors file ({path.stat().st_size} bytes: {error}). "
            "Copy or download it again; files of torch.save have to be converted first."
        ) from error
    check_tensors(tensors, path)
    return tensors, metadata


def check_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse tensors of a file that no network can have: of an odd kind, larger than the file, not finite."""
    claimed, size = 0, path.stat().st_size
    for name, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
        if not plain or tensor.is_quantized or tensor.is_complex():
            raise CheckpointError(
                f"'{path}': tensor '{name}' is no plain table of real numbers, but sparse, nested, quantised, complex "
                "or without values. Save the network's state_dict() in single or half precision."
            )
        claimed += tensor.numel() * tensor.element_size()
    if claimed > max(LARGEST_SHARE * size, SMALL_BYTES):
        raise CheckpointError(
            f"'{path}' has {size} bytes, but its tensors say that they have {claimed}. Save the network's state_dict() "
            "with a clone() of each tensor."
        )
    for name, tensor in tensors.items():
        numbers = tensor if tensor.element_size() > 1 or not tensor.is_floating_point() else tensor.float()
        if not torch.isfinite(numbers).all():
            raise CheckpointError(
                f"'{path}': tensor '{name}' holds values that are no finite numbers, so the network would see nothing. "
                "Did its training diverge? Choose an earlier file."
            )


def compare_states(stored: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """What keeps ``stored`` from being a state of the network whose state is ``wanted``; empty if nothing does."""
    missing = [name for name in wanted if name not in stored]
    unexpected = [name for name in stored if name not in wanted]
    shapes = [
        f"{name} {tuple(stored[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in wanted
        if name in stored and stored[name].shape != wanted[name].shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    return [f"{len(names)} {kind} ({shown_names(names)})" for kind, names in kinds.items() if names]


def _in_order(content: bytes) -> bytes:
    """A safetensors file (length, JSON header, tensors) with its metadata sorted; the library's order is random."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[start:]


def shown_names(names: list[str]) -> str:
    """The first of them, for a message."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
