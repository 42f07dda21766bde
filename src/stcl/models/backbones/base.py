"""The contract of a backbone: named stages, their channels and strides, and a tap on every stage.

A new backbone is one file with a subclass of :class:`Backbone` and one line in ``stcl.models.BACKBONES``.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stcl.errors import MissingExtraError, SettingError, unknown_name
from stcl.models.heads import HeadSettings
from stcl.models.norms import changed, norm_layers
from stcl.ops.masking import RGB_MEAN

BGR_MEAN = (104.00698793, 116.66876762, 122.67891434)
"""Mean of the published input (method section 2), in BGR order and 0-255."""

RGB_STD = (0.229, 0.224, 0.225)
"""Usual standard deviation of natural images, RGB 0..1."""

INPUTS = ("published", "imagenet")
"""``published``: BGR 0..255 minus the mean, as the video adaptation papers have it; ``imagenet``: RGB with about zero
mean and unit variance, as weights of torchvision, timm and transformers expect it."""

Tap = Callable[[str, Tensor], Tensor]
"""``tap(stage name, features) -> features``: sees each stage's output; what it returns goes on through the network."""

Block = Callable[..., Tensor]
"""Part of a backbone, ``block(features, ...) -> features``: a module, or a method of the backbone. It draws nothing:
what is random, such as which residual branches are left out, is drawn before and handed to it."""


class BlockRunner(Protocol):
    """How a block is run, see :func:`run_block`."""

    def __call__(self, block: Block, *features: Any, checkpointing: bool) -> Tensor:
        """``block(*features)``."""
        ...


class Input(nn.Module):
    """Float RGB 0..1 ``(B, 3, H, W)`` to one of :data:`INPUTS`; its constants are in no checkpoint."""

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind not in INPUTS:
            raise SettingError(unknown_name("input", kind, INPUTS))
        self.kind = kind
        constants = {"mean": BGR_MEAN if kind == "published" else RGB_MEAN, "std": RGB_STD}
        for name, values in constants.items():
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """In the chosen range."""
        if self.kind == "published":
            return image.flip(-3) * 255 - self.mean
        return (image - self.mean) / self.std


class Backbone(nn.Module, ABC):
    """Image ``(B, 3, H, W)`` to feature maps by stage name.

    A subclass runs its blocks through :meth:`compute` or :meth:`chain`; the rest is inherited.

    Args:
        input: range and order of channels that the network was trained on, one of :data:`INPUTS`.

    Attributes:
        stages: names in the order in which they are computed; the last one or all of them feed the main head, the one
            before the last the auxiliary head.
        channels: ``stage -> channels``.
        strides: ``stage -> stride``: a stage's map has about ``H / stride`` rows (rounded as its convolutions do).
        head_settings: how wide and how far-reaching the heads on this backbone are unless told otherwise.
        gradient_checkpointing: keep only the input of each block for the backward pass, which computes the rest again.
        runner: how a block is run; :func:`stcl.models.compilation.compile_network` puts a compiled one here.
    """

    stages: tuple[str, ...]
    channels: dict[str, int]
    strides: dict[str, int]
    head_settings: HeadSettings = HeadSettings()
    gradient_checkpointing: bool = False

    def __init__(self, input: str = "imagenet") -> None:
        super().__init__()
        self.input = Input(input)
        self.runner: BlockRunner = run_block

    def compute(self, block: Block, *features: Any) -> Tensor:
        """``block(*features)``, the way this backbone is told to run its blocks; modules may be among the arguments."""
        return self.runner(block, *features, checkpointing=self.gradient_checkpointing and torch.is_grad_enabled())

    def chain(self, blocks: nn.Sequential, features: Tensor) -> Tensor:
        """:meth:`compute` of one block after the other."""
        for block in blocks:
            features = self.compute(block, features)
        return features

    def normalise(self, image: Tensor) -> Tensor:
        """Float RGB 0..1 to the range and channel order that this backbone was trained on."""
        normalised: Tensor = self.input(image)
        return normalised

    @abstractmethod
    def forward(self, image: Tensor, tap: Tap | None = None) -> dict[str, Tensor]:
        """Feature maps of float RGB 0..1 ``image (B, 3, H, W)`` by stage name, in order."""


def run_block(block: Block, *features: Any, checkpointing: bool) -> Tensor:
    """``block(*features)``; with ``checkpointing`` the backward pass gets all but the inputs by computing it again."""
    if not checkpointing:
        return block(*features)
    again = partial(checkpoint, block, *features, use_reentrant=False, preserve_rng_state=False)
    if torch.compiler.is_compiling():  # the compiler's second pass leaves buffers alone by itself
        return again()
    return again(context_fn=partial(_passes, block))


def _passes(block: Block) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the two passes over a block: only the first one moves the running statistics of batch norm.

    In the second one batch norm does all that it does otherwise (autograd compares what is saved), but with momentum 0.
    """
    module: Any = getattr(block, "__self__", block)  # a method's module is the backbone
    return nullcontext(), changed(
        (layer, {"momentum": 0.0, "num_batches_tracked": torch.zeros_like(counter)})
        for layer in norm_layers(module)
        if layer.training and (counter := layer.num_batches_tracked) is not None
    )


def untapped(_stage: str, features: Tensor) -> Tensor:
    """The tap that changes nothing."""
    return features


# ---- what the transformers share ----


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
