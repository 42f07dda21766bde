"""Material colours (RGB in [0, 1]) before a style changes their saturation, brightness and hue."""

import colorsys

import numpy as np

from stcl.twinstreets.styles import Look

Color = tuple[float, float, float]

COLORS: dict[str, tuple[Color, ...]] = {
    "plaster": ((0.80, 0.70, 0.52), (0.72, 0.66, 0.60), (0.78, 0.74, 0.68), (0.70, 0.55, 0.45), (0.62, 0.60, 0.58),
                (0.66, 0.46, 0.36), (0.85, 0.80, 0.70), (0.58, 0.50, 0.44), (0.52, 0.54, 0.58), (0.74, 0.60, 0.40)),
    "brick": ((0.52, 0.28, 0.20), (0.58, 0.36, 0.26), (0.45, 0.30, 0.25), (0.60, 0.44, 0.32)),
    "frame": ((0.88, 0.87, 0.84), (0.35, 0.26, 0.20), (0.70, 0.68, 0.64), (0.25, 0.27, 0.28)),
    "roof": ((0.48, 0.24, 0.17), (0.36, 0.34, 0.34), (0.42, 0.30, 0.24), (0.30, 0.29, 0.31)),
    "leaf": ((0.22, 0.36, 0.12), (0.28, 0.42, 0.14), (0.18, 0.30, 0.13), (0.34, 0.42, 0.16), (0.26, 0.34, 0.10)),
    "grass": ((0.30, 0.44, 0.16), (0.36, 0.46, 0.20), (0.28, 0.38, 0.14)),
    "bark": ((0.30, 0.23, 0.17), (0.36, 0.30, 0.24), (0.26, 0.22, 0.19)),
    "asphalt": ((0.36, 0.36, 0.37), (0.42, 0.41, 0.41), (0.31, 0.31, 0.33), (0.39, 0.38, 0.36)),
    "paving": ((0.62, 0.59, 0.55), (0.56, 0.55, 0.54), (0.66, 0.58, 0.52), (0.54, 0.49, 0.45), (0.68, 0.66, 0.62)),
    "car": ((0.75, 0.76, 0.78), (0.90, 0.90, 0.90), (0.10, 0.10, 0.11), (0.30, 0.31, 0.33), (0.62, 0.10, 0.09),
            (0.13, 0.20, 0.48), (0.50, 0.52, 0.55), (0.18, 0.36, 0.30), (0.80, 0.66, 0.18), (0.22, 0.10, 0.10)),
    "metal": ((0.48, 0.49, 0.50), (0.38, 0.39, 0.40), (0.56, 0.56, 0.55), (0.28, 0.33, 0.30)),
    "fence": ((0.46, 0.34, 0.22), (0.84, 0.84, 0.82), (0.24, 0.25, 0.26), (0.56, 0.46, 0.34), (0.34, 0.40, 0.34)),
    "cloth": ((0.70, 0.14, 0.14), (0.14, 0.20, 0.46), (0.12, 0.12, 0.13), (0.82, 0.80, 0.76), (0.24, 0.46, 0.30),
              (0.80, 0.56, 0.16), (0.44, 0.26, 0.44), (0.42, 0.44, 0.47), (0.24, 0.52, 0.62)),
    "trousers": ((0.14, 0.18, 0.32), (0.11, 0.11, 0.12), (0.44, 0.38, 0.28), (0.30, 0.31, 0.33), (0.24, 0.20, 0.17)),
    "skin": ((0.84, 0.64, 0.52), (0.70, 0.50, 0.38), (0.48, 0.32, 0.24), (0.88, 0.70, 0.60)),
    "hair": ((0.14, 0.10, 0.08), (0.36, 0.24, 0.14), (0.62, 0.50, 0.30), (0.46, 0.45, 0.44)),
    "sign": ((0.80, 0.08, 0.08), (0.08, 0.24, 0.68), (0.94, 0.76, 0.08), (0.06, 0.44, 0.26)),
}  # fmt: skip


def brighter(color: Color, factor: float) -> Color:
    """`color` times `factor`, at most white."""
    red, green, blue = (min(1.0, factor * value) for value in color)
    return red, green, blue


class Palette:
    """Colours of one style: picks one of a kind, varied a little."""

    def __init__(self, look: Look) -> None:
        self.look = look

    def styled(self, color: Color) -> Color:
        """`color` with the style's saturation, brightness and hue."""
        hue, saturation, value = colorsys.rgb_to_hsv(*color)
        hue = (hue + self.look.hue / 360.0) % 1.0
        saturation, value = min(1.0, saturation * self.look.saturation), min(1.0, value * self.look.brightness)
        return colorsys.hsv_to_rgb(hue, saturation, value)

    def pick(self, kind: str, random: np.random.Generator, spread: float = 0.07) -> Color:
        """A random colour of a kind; `spread` is the size of its variation in brightness and tint."""
        color = COLORS[kind][random.integers(len(COLORS[kind]))]
        shade, *tints = random.standard_normal(4).tolist()  # plain floats: this runs hundreds of times a clip
        varied = (value * (1.0 + spread * (shade + 0.4 * tint)) for value, tint in zip(color, tints, strict=True))
        red, green, blue = (min(0.98, max(0.02, value)) for value in varied)
        return self.styled((red, green, blue))
