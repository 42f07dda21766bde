"""Dense inverse search: fast flow on the CPU, from OpenCV.

Kroeger et al., Fast Optical Flow using Dense Inverse Search, ECCV 2016.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from stcl.errors import DataError, SettingError, lookup
from stcl.types import FrameRef

PRESETS: dict[str, int] = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
_SMALLEST_PX = 12  # OpenCV refuses images below its patch size


class DisFlow:
    """DIS flow of two images.

    Args:
        preset: ``ultrafast``, ``fast`` or ``medium``: slower is better. At 1024x512 on one core about 20, 30, 100 ms.
    """

    def __init__(self, preset: str = "medium") -> None:
        lookup(PRESETS, preset, "preset of flow 'dis'")
        self.preset = preset

    @property
    def signature(self) -> str:
        """What decides the result besides the images."""
        return f"dis(preset={self.preset}, opencv={cv2.__version__})"

    def __call__(
        self, a: FrameRef, b: FrameRef, image_a: NDArray[np.uint8], image_b: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Flow a -> b ``(2, H, W)`` float32 pixels of images ``(H, W, 3)`` uint8 RGB."""
        if image_a.shape != image_b.shape:
            raise SettingError(f"Flow needs two images of one size, found {image_a.shape} and {image_b.shape}.")
        if min(image_a.shape[:2]) < _SMALLEST_PX:
            height, width = image_a.shape[:2]
            raise DataError(
                f"Frame {a.image} is {width}x{height} after resizing; flow 'dis' needs {_SMALLEST_PX} pixels each way."
            )
        grey_a, grey_b = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (image_a, image_b))
        # made for each call: that costs microseconds, and it could not be pickled
        engine = cv2.DISOpticalFlow_create(PRESETS[self.preset])  # type: ignore[attr-defined]
        flow = engine.calc(grey_a, grey_b, None)  # (H, W, 2): (u, v), grey_a[y, x] ~ grey_b[y + v, x + u]
        return np.ascontiguousarray(flow.transpose(2, 0, 1), dtype=np.float32)
