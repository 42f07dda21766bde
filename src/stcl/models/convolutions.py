"""Convolutions that oneDNN, torch's library for CPUs, cannot train as they are, as any processor can train them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 16
"""Channels that oneDNN takes together in half precision."""


class StridedPointwise(nn.Conv2d):
    """1x1 convolution without bias, ``(B, C, h, w) -> (B, C', ceil(h / stride), ceil(w / stride))``.

    It computes what ``nn.Conv2d(channels, outputs, 1, stride, bias=False)`` does, with the same names in a checkpoint,
    in two steps: every ``stride``-th place, then a convolution without stride. oneDNN's weight gradient of a strided
    1x1 convolution in ``channels_last`` writes beyond its workspace where there are fewer input channels than a vector
    has lanes, below 8 with AVX2, below 16 with AVX-512 (https://github.com/uxlfoundation/oneDNN/issues/6035): the
    process hangs, dies, or goes on with damaged memory. The memory format of the weights is no way around it: a
    convolution takes ``channels_last`` where either its input or its weights have it, and torch's compiler always does.

    The mean over one place is that place. Pooling, unlike a slice, keeps the memory format; a training step of the
    default backbone takes as long as with the strided convolution.
    """

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__(channels, outputs, 1, bias=False)
        self.every = stride

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        if self.every > 1:
            features = F.avg_pool2d(features, 1, self.every)
        return super().forward(features)


class DilatedConv2d(nn.Conv2d):
    """``nn.Conv2d`` for dilations above 1: under autocast on a CPU some of them keep the precision of their weights.

    oneDNN's weight gradient of a dilated convolution in bfloat16 and ``channels_last`` is wrong by more than its
    largest value, or reads far behind the features, which may end the process: where each channel is convolved by
    itself, as in a separable pyramid, and where more than 16 input channels are no multiple of 16. Seen on one fifth
    of random sizes with AVX-512 and torch 2.13; never in float32, which such convolutions therefore keep.
    """

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        unsafe = max(self.dilation) > 1 and self.in_channels // self.groups % BLOCK != 0
        if unsafe and features.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(features.to(self.weight.dtype))
        return super().forward(features)
