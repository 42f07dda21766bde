"""Other people's checkpoints: which network a state dict is of, by its names and shapes alone."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from stcl.errors import CheckpointError, SettingError
from stcl.labels import SPACES, LabelSpace, get_space
from stcl.models.weights.own import shown_names
from stcl.models.weights.published import PublishedNetwork, read_cnn, read_vit

PREFIXES = ("module.", "Scale.")
"""What data-parallel training, and DeepLab's files converted from Caffe, put before every name."""

VIEWS = ("", "model.", "network.", "net.", "student.", "ema_", "ema_model.", "model_ema.", "teacher.")
"""Where a training program's state holds the network, in the order of preference: the network before its average."""

READERS: dict[str, Callable[[dict[str, Tensor]], PublishedNetwork | None]] = {
    "the CNNs of STCL, TPS, DA-VSN and source only, ResNet-18, 50 and 101 of ImageNet": read_cnn,
    "the ViT of QuadMix, DAFormer, SegFormer, MiT-B0 to B5 of ImageNet": read_vit,
}
"""Whatever is known; each gives None for what it does not know."""

SPACE_OF = {12: "synthia_seq-cityscapes_seq", 15: "viper-cityscapes_seq", 19: "cityscapes"}
"""Label space by the number of classes, as the published networks have them."""


def recognise(tensors: dict[str, Tensor], path: object) -> PublishedNetwork:
    """Find out which network a state dict is of.

    Args:
        tensors: as they stand in the file.
        path: for the message.

    Raises:
        CheckpointError: nothing known looks like this.
    """
    bare = _strip_prefixes(tensors)
    for view in VIEWS:
        inside = {name.removeprefix(view): tensor for name, tensor in bare.items() if name.startswith(view)}
        for read in READERS.values():
            try:
                network = read(_strip_prefixes(inside))
            except CheckpointError as error:
                raise CheckpointError(f"'{path}': {error}") from None
            except (IndexError, RuntimeError, TypeError) as error:  # shapes that the reader does not expect
                raise CheckpointError(
                    f"'{path}' has the names of a network that is known here, but not its shapes ({error}). "
                    "Is it whole?"
                ) from None
            if network is not None:
                state = dict(network.tensors)
                for name in network.tensors:  # batch norm's counters, which torch did not keep before 0.4.1
                    stem, dot, last = name.rpartition(".")
                    if dot and last == "running_mean":
                        state.setdefault(f"{stem}.num_batches_tracked", torch.zeros((), dtype=torch.long))
                elsewhere = (name for name in bare if not name.startswith(view))
                return replace(network, tensors=state, left_out=(*network.left_out, *elsewhere))
    raise CheckpointError(
        f"'{path}' holds {len(tensors)} tensors ({shown_names([*tensors])}) of no network that is known here. Known "
        f"are {'; '.join(READERS)}; and files of 'stcl train', which say themselves how their network is built."
    )


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state without what stands before every name of it."""
    while prefix := next((p for p in PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def label_space(network: PublishedNetwork, path: object, space: str | LabelSpace | None = None) -> LabelSpace:
    """The classes of a published network: ``space`` where it is given, else by their number."""
    given = get_space(space) if isinstance(space, str) else space
    if given is None:
        if network.classes not in SPACE_OF:
            fitting = [name for name, known in SPACES.items() if len(known) == network.classes]
            hint = f", e.g. {' or '.join(fitting)}" if fitting else ""
            raise SettingError(
                f"'{path}' ({network.title}) has {network.classes} classes, and which they are does not follow from "
                f"their number. Say so with the argument space{hint}."
            )
        return SPACES[SPACE_OF[network.classes]]
    if len(given) != network.classes:
        raise SettingError(
            f"'{path}' ({network.title}) has {network.classes} classes, but label space '{given.name}' has "
            f"{len(given)} ({', '.join(given.names)}). Choose the space that the network was trained on."
        )
    return given
