"""Flow for whoever only looks: nothing is written, and it is known which flow lies in a file."""

import numpy as np
from numpy.typing import NDArray

from stcl.flow.cache import CachedFlow
from stcl.types import FlowProvider, FrameRef


class ReadingFlow:
    """A provider that writes nothing: what a cache does not hold is computed and not kept.

    Args:
        provider: any; one that reads files says which by ``source_path(a, b)``.
    """

    def __init__(self, provider: FlowProvider) -> None:
        self.provider = provider

    def is_stored(self, a: FrameRef, b: FrameRef) -> bool:
        """Whether the flow a -> b comes from a file: asking for it takes little time and shows whether it fits."""
        if isinstance(self.provider, CachedFlow):
            return self.provider.path(a, b).exists()
        return hasattr(self.provider, "source_path")

    def __call__(
        self, a: FrameRef, b: FrameRef, image_a: NDArray[np.uint8], image_b: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Flow a -> b ``(2, H, W)`` float32 pixels."""
        provider = self.provider
        if isinstance(provider, CachedFlow) and not self.is_stored(a, b):
            provider = provider.provider
        return provider(a, b, image_a, image_b)
