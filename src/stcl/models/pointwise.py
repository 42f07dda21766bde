"""A 1x1 convolution with a stride, as any processor can train it."""

import torch.nn.functional as F
from torch import Tensor, nn


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
