"""Starting weights of a backbone by name: from a folder of yours, the cache of huggingface_hub, or the network.

``pretrained:imagenet`` (ResNets, MiT), ``pretrained:dinov2`` (DINOv2), or ``pretrained:FILE`` for such a file by its
path. Heads and fusion keep their own start. The weights have licences of their own, which stand on the pages that they
come from.
"""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from stcl.errors import CheckpointError, MissingExtraError, SettingError, unknown_name
from stcl.files.paths import from_home
from stcl.models.backbones.base import Backbone
from stcl.models.weights.files import FOLDER_FILES, read_tensor_file
from stcl.models.weights.own import compare_states
from stcl.models.weights.published import rename_tensor

FOLDER = "STCL_WEIGHTS"
"""Environment variable: a folder in which files lie as ``OWNER/REPOSITORY/FILE`` of huggingface.co."""


def _rename_dinov2(name: str) -> str:
    """A name in the files, which is of older transformers, as those of today have it."""
    name = re.sub(
        r"\.attention\.attention\.(q|k|v)(uery|ey|alue)\.", r".attention.\1_proj.", name.removeprefix("dinov2.")
    )
    return name.replace(".attention.output.dense.", ".attention.o_proj.")


class Family(NamedTuple):
    """Backbones whose files are read alike.

    Attributes:
        part: attribute of the backbone that the file is the state of; empty for the backbone itself.
        rename: names in files to what they are here.
        unused: pattern of names that are left aside.
        weights: their name, after ``pretrained:``.
        repositories: backbone -> repository of huggingface.co.
        expects: settings of the backbone that the weights were trained with.
    """

    part: str
    rename: Callable[[str], str]
    unused: str
    weights: str
    repositories: dict[str, str]
    expects: dict[str, str]


FAMILIES = {
    "resnet": Family(
        part="",
        rename=str,
        unused=r"fc\.",
        weights="imagenet",
        repositories={f"resnet{depth}": f"timm/resnet{depth}.tv_in1k" for depth in (18, 50, 101)},
        expects={"input": "imagenet", "stride_in": "middle"},
    ),
    "mit": Family(
        part="encoder",
        rename=lambda name: rename_tensor(name.removeprefix("segformer.")) or name,
        unused=r"(classifier|decode_head)\.",
        weights="imagenet",
        repositories={f"mit_b{number}": f"nvidia/mit-b{number}" for number in range(6)},
        expects={"input": "imagenet"},
    ),
    "dinov2": Family(
        part="encoder",
        rename=_rename_dinov2,
        unused=r"classifier\.|embeddings\.mask_token$",
        weights="dinov2",
        repositories={f"dinov2_{variant}": f"facebook/dinov2-{variant}" for variant in ("small", "base", "large")},
        expects={"input": "imagenet"},
    ),
}
"""Families by what a backbone's name begins with. Files carry the names of older transformers, or those of today's."""


def load_pretrained(backbone: Backbone, backbone_name: str, weights: str) -> Path:
    """Start ``backbone`` from published weights; a warning says where they were trained with another input or stride.

    Args:
        backbone: changed in place, whole or not at all.
        backbone_name: its name in ``stcl.models.BACKBONES``.
        weights: a name that :func:`list_pretrained` gives for it, or the path of a file.

    Returns:
        The file.
    """
    family, path = _family(backbone_name), from_home(weights)
    if path.suffix not in (".safetensors", ".bin", ".pth", ".pt"):
        known = list_pretrained(backbone_name)
        if weights not in known:
            kind = f"pretrained weights for backbone '{backbone_name}'"
            raise SettingError(f"{unknown_name(kind, weights, known)} The path of a file works too (network.weights).")
        path = find_file(family.repositories[backbone_name], backbone_name, weights)
    elif not path.exists():
        raise CheckpointError(f"There is no weights file '{path}' (network.weights). Check the path.")
    part = getattr(backbone, family.part) if family.part else backbone
    state = part.state_dict()
    renamed = {family.rename(name): tensor for name, tensor in read_tensor_file(path).tensors.items()}
    counters = {name: tensor for name, tensor in state.items() if name.endswith("num_batches_tracked")}
    loaded = counters | {name: tensor for name, tensor in renamed.items() if not re.match(family.unused, name)}
    differences = compare_states(loaded, state)
    if differences:
        raise CheckpointError(
            f"'{path}' does not hold the weights of backbone '{backbone_name}': {'; '.join(differences)}. Choose "
            "another file, or set network.backbone to what it belongs to."
        )
    part.load_state_dict(loaded)
    built = {"input": backbone.input.kind, "stride_in": getattr(backbone, "stride_in", None)}
    wrong = [f"{key}: {wanted}" for key, wanted in family.expects.items() if built[key] not in (wanted, None)]
    if wrong:
        logging.getLogger(__name__).warning(
            "The weights of '%s' were trained with network.backbone_settings {%s}, which this network is not. It will "
            "train, from a somewhat worse start.",
            backbone_name,
            ", ".join(wrong),
        )
    return path


def list_pretrained(backbone_name: str) -> list[str]:
    """Names of the weights that there are for a backbone."""
    family = _family(backbone_name)
    return [family.weights] if backbone_name in family.repositories else []


def _family(backbone_name: str) -> Family:
    for prefix, family in FAMILIES.items():
        if backbone_name.startswith(prefix):
            return family
    known = ", ".join(name for family in FAMILIES.values() for name in family.repositories)
    raise SettingError(
        f"There are no pretrained weights for backbone '{backbone_name}' (network.weights). There are some for: "
        f"{known}."
    )


def find_file(repository: str, backbone_name: str, weights: str) -> Path:
    """A repository's weights on this machine: from the folder of :data:`FOLDER`, the cache, or downloaded into that."""
    folder = os.environ.get(FOLDER)
    for file in FOLDER_FILES if folder else ():
        path = from_home(str(folder)) / repository / file
        if path.is_file():
            return path
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        raise MissingExtraError("Downloading pretrained weights", "huggingface_hub", "networks") from error
    problem: Exception | None = None
    for cached_only in (True, False):
        for file in FOLDER_FILES:
            try:
                return Path(hf_hub_download(repository, file, local_files_only=cached_only))
            except (EntryNotFoundError, OSError) as error:  # no network, no such file, or a server that refuses
                problem = error
                if not cached_only and isinstance(error, LocalEntryNotFoundError):
                    break  # the network does not answer: asking for the other file would take as long again
    reason, first = " ".join(str(problem).split())[:200].rstrip("."), FOLDER_FILES[0]
    raise CheckpointError(
        f"The weights 'pretrained:{weights}' of backbone '{backbone_name}' are the file {first} of "
        f"https://huggingface.co/{repository}, which is not on this machine and could not be downloaded ({reason}). "
        f"Fetch it where there is internet, put it at DIR/{repository}/{first} and set {FOLDER}=DIR, or give its "
        f"path: network.weights pretrained:PATH/{first}."
    ) from problem
