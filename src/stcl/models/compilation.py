"""Compiled networks: ``torch.compile`` of a backbone's blocks, and a clean way back where it does not work.

Blocks are compiled, not networks: blocks of one shape share one result, student and teacher alike; taps and the
switching of batch-norm statistics stay outside; and the heads' dropout draws what it draws without a compiler. With
gradient checkpointing the compiled backward pass itself computes a block again.
"""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from stcl.models.backbones.base import Backbone, Block, BlockRunner, run_block

MOST_VARIANTS = 1024
"""Compiled blocks at most: shapes of a ResNet's blocks x sizes and batches of clips x modes of batch norm."""


def compile_network(module: nn.Module, dynamic: bool = False) -> None:
    """Compile the blocks of every backbone in ``module``, in place, as they are met; state-dict names stay.

    A copy of a compiled network is compiled, too. Where compiling fails, training goes on without, after one warning.

    Args:
        module: a network, or a method with its networks.
        dynamic: one result for all sizes of clips instead of one for each; for training at many scales.
    """
    import torch._functorch.config as autograd
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    config.recompile_limit = max(config.recompile_limit, MOST_VARIANTS)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, MOST_VARIANTS)
    config.optimize_ddp = False  # splits graphs where a bucket of gradients ends: blocks are small enough
    if hasattr(autograd, "force_non_lazy_backward_lowering"):  # not in every version of torch
        autograd.force_non_lazy_backward_lowering = True  # so that all errors come up in the forward pass
    compiled: BlockRunner | None = None
    try:
        compiled = torch.compile(run_block, dynamic=dynamic)
    except RuntimeError as error:  # a Python or a platform that it does not support
        _warn(error)

    def run(block: Block, *features: Any, checkpointing: bool) -> Tensor:
        nonlocal compiled
        if compiled is not None:
            try:
                return compiled(block, *features, checkpointing=checkpointing)
            except TorchDynamoException as error:  # nothing has been computed yet
                compiled = None
                _warn(error)
        return run_block(block, *features, checkpointing=checkpointing)

    for part in module.modules():
        if isinstance(part, Backbone):
            part.runner = run


def _warn(error: Exception) -> None:
    reason = " ".join(str(error).partition("\n\n")[0].split())[:300] or type(error).__name__
    logging.getLogger(__name__).warning(
        "torch.compile does not work here, so training goes on without it (%s). It needs a C++ compiler, and "
        "Triton on a GPU; with training.compile false this message goes away.",
        reason,
    )
