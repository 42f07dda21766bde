"""Which parameters weight decay holds for."""

from typing import Literal, get_args

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from stcl.errors import SettingError, unknown_name
from stcl.models.statistics import FixedBatchNorm

Decayed = Literal["all", "all_but_norms", "weights"]
"""``all``: every parameter, as the published CNN; ``all_but_norms``: not the scales and shifts of norms, as SegFormer
and the published ViT; ``weights``: neither those nor biases nor other vectors, as usual with AdamW."""

NORMS = (_BatchNorm, FixedBatchNorm, nn.GroupNorm, nn.LayerNorm)


def check_decayed(decayed: str) -> None:
    """Refuse an unknown choice."""
    if decayed not in get_args(Decayed):
        raise SettingError(unknown_name("choice of what decays", decayed, get_args(Decayed)))


def undecayed(network: nn.Module, decayed: Decayed) -> set[int]:
    """``id`` of each parameter of ``network`` that does not decay."""
    if decayed == "all":
        return set()
    if decayed == "weights":
        return {id(parameter) for parameter in network.parameters() if parameter.ndim < 2}
    norms = (layer for layer in network.modules() if isinstance(layer, NORMS))
    return {id(parameter) for layer in norms for parameter in layer.parameters()}
