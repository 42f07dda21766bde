"""No motion: the yardstick that every other source of flow is measured against."""

import numpy as np
from numpy.typing import NDArray

from stcl.types import FrameRef


class ZeroFlow:
    """Zero everywhere: each pixel is taken to show what it showed before. For still cameras, and for comparison."""

    signature = "zero"

    def __call__(
        self, a: FrameRef, b: FrameRef, image_a: NDArray[np.uint8], image_b: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Flow a -> b ``(2, H, W)`` float32 pixels, all zero."""
        return np.zeros((2, *image_a.shape[:2]), np.float32)
