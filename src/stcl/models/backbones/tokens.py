"""What the transformer backbones share: maps as token sequences, residual branches left out at random, the library."""

import logging
from types import ModuleType

import torch
from torch import Tensor

from stcl.errors import MissingExtraError, SettingError


def transformers() -> ModuleType:
    """The library whose layers the transformer backbones are made of; it takes seconds to import."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("A transformer backbone", "transformers", "networks") from error
    logging.getLogger("transformers").setLevel(logging.WARNING)
    return transformers


def as_tokens(features: Tensor) -> Tensor:
    """``(B, C, h, w) -> (B, h w, C)``, row by row; a view of a map in ``channels_last``."""
    return features.flatten(2).transpose(1, 2)


def as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """``(B, h w, C) -> (B, C, h, w)``, a view in ``channels_last``."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def draw_kept(like: Tensor, rate: float, training: bool) -> Tensor | None:
    """Factors of the two residual branches of a layer (stochastic depth; Huang et al. 2016, arXiv 1603.09382).

    Args:
        like: a tensor with the batch's length, device and type.
        rate: probability with which a branch of a sample is left out.
        training: draw at all.

    Returns:
        ``(2, B, 1, 1)``: 0 where a branch is left out, ``1 / (1 - rate)`` elsewhere; None where all are kept.
    """
    if rate == 0 or not training:
        return None
    kept = torch.rand(2, len(like), 1, 1, device=like.device) >= rate
    return kept.to(like.dtype) / (1 - rate)


def add_branch(tokens: Tensor, branch: Tensor, kept: Tensor | None, which: int) -> Tensor:
    """``tokens`` plus a residual branch, both ``(B, N, C)``, by what :func:`draw_kept` gave."""
    return tokens + (branch if kept is None else branch * kept[which].to(branch.dtype))


def check_drop_path(rate: float) -> None:
    """A rate of stochastic depth is a probability."""
    if not 0 <= rate < 1:
        raise SettingError(f"drop_path is a probability below 1, not {rate}.")
