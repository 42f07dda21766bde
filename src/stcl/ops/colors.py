"""Label maps as colours: pure functions on numpy arrays."""

import numpy as np
from numpy.typing import NDArray

from stcl.errors import SettingError
from stcl.labels import IGNORE


def colourise(label: NDArray[np.integer], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours of a label map.

    Args:
        label: train ids ``(H, W)``, integers 0..255.
        palette: colours ``(256, 3)`` uint8 RGB, as :attr:`stcl.labels.LabelSpace.palette` gives them.

    Returns:
        Picture ``(H, W, 3)`` uint8 RGB.
    """
    if label.ndim != 2 or not np.issubdtype(label.dtype, np.integer):
        raise SettingError(f"A label map is (H, W) integers; found shape {label.shape} of {label.dtype}.")
    if palette.shape != (256, 3):
        raise SettingError(f"A palette is (256, 3) RGB; found shape {palette.shape}.")
    return palette[label]


def overlay(
    image: NDArray[np.uint8], label: NDArray[np.integer], palette: NDArray[np.uint8], alpha: float = 0.5
) -> NDArray[np.uint8]:
    """The image with the colours of its label map laid over it; ignored pixels (255) keep the image.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        label: train ids ``(H, W)``.
        palette: ``(256, 3)`` uint8 RGB.
        alpha: weight of the label colours, 0 (image only) .. 1 (colours only).
    """
    if image.shape != (*label.shape, 3):
        raise SettingError(f"Image {image.shape} and label map {label.shape} do not cover the same pixels.")
    if not 0.0 <= alpha <= 1.0:
        raise SettingError(f"alpha must lie in 0..1; found {alpha}.")
    mixed = np.float32(1 - alpha) * image + np.float32(alpha) * colourise(label, palette)
    picture: NDArray[np.uint8] = np.rint(mixed, out=mixed).astype(np.uint8)
    ignored = label == IGNORE
    if ignored.any():
        picture[ignored] = image[ignored]
    return picture


def flow_colours(flow: NDArray[np.float32], largest_px: float) -> NDArray[np.uint8]:
    """Optical flow as colours: the direction is the hue, the length the strength, no motion is white.

    Args:
        flow: ``(2, H, W)`` pixels.
        largest_px: length of the strongest colour; longer vectors are shown as strong.

    Returns:
        Picture ``(H, W, 3)`` uint8 RGB.
    """
    strength = np.clip(np.hypot(flow[0], flow[1]) / largest_px, 0, 1)[..., None]
    turn = np.arctan2(flow[1], flow[0])[..., None] - np.float32(2 * np.pi / 3) * np.arange(3)
    hue = 0.5 + 0.5 * np.cos(turn)  # red points right; green and blue a third of a turn on, clockwise on the screen
    picture: NDArray[np.uint8] = np.rint(255 * (1 - strength * (1 - hue))).astype(np.uint8)
    return picture
