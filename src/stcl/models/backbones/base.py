"""The contract of a backbone: named stages, their channels and strides, and a tap on every stage.

A new backbone is one file with a subclass of :class:`Backbone` and one line in ``stcl.models.BACKBONES``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stcl.models.head import HeadSettings
from stcl.models.statistics import FixedBatchNorm, norm_layers

Tap = Callable[[str, Tensor], Tensor]
"""``tap(stage name, features) -> features``: sees each stage's output; what it returns goes on through the network."""

Block = Callable[..., Tensor]
"""Part of a backbone, ``block(features, ...) -> features``: a module, or a method of the backbone. It draws nothing:
what is random, such as which residual branches are left out, is drawn before and handed to it."""


class Runner(Protocol):
    """How a block is run, see :func:`run_block`."""

    def __call__(self, block: Block, *features: Any, checkpointing: bool) -> Tensor:
        """``block(*features)``."""
        ...


class Backbone(nn.Module, ABC):
    """Image ``(B, 3, H, W)`` to feature maps by stage name.

    A subclass runs its blocks through :meth:`compute`; the rest is inherited.

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

    def __init__(self) -> None:
        super().__init__()
        self.runner: Runner = run_block

    def compute(self, block: Block, *features: Any) -> Tensor:
        """``block(*features)``, the way this backbone is told to run its blocks; modules may be among the arguments."""
        return self.runner(block, *features, checkpointing=self.gradient_checkpointing and torch.is_grad_enabled())

    def chain(self, blocks: nn.Sequential, features: Tensor) -> Tensor:
        """:meth:`compute` of one block after the other."""
        for block in blocks:
            features = self.compute(block, features)
        return features

    @abstractmethod
    def normalise(self, image: Tensor) -> Tensor:
        """Float RGB 0..1 to the range and channel order that this backbone was trained on."""

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
    """Contexts of the two passes over a block: only the first one moves the running statistics of batch norm."""
    module: Any = getattr(block, "__self__", block)  # a method's module is the backbone
    return nullcontext(), _unmoved(module)


@contextmanager
def _unmoved(module: nn.Module) -> Iterator[None]:
    """Batch norm does all that it does otherwise (autograd compares what is saved), but with momentum 0."""
    kept = [
        (layer, layer.momentum, counter)
        for layer in norm_layers(module)
        if layer.training and (counter := layer.num_batches_tracked) is not None
    ]
    try:
        for layer, _, counter in kept:
            layer.momentum, layer.num_batches_tracked = 0.0, torch.zeros_like(counter)
        yield
    finally:
        for layer, momentum, counter in kept:
            layer.momentum, layer.num_batches_tracked = momentum, counter


def untapped(_stage: str, features: Tensor) -> Tensor:
    """The tap that changes nothing."""
    return features


def freeze_affine(module: nn.Module) -> None:
    """Stop the gradient of every norm's scale and shift in ``module``; statistics still follow the data."""
    kinds = (nn.GroupNorm, FixedBatchNorm)
    for layer in [*norm_layers(module), *(part for part in module.modules() if isinstance(part, kinds))]:
        layer.requires_grad_(False)
