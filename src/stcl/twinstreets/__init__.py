"""TwinStreets, the built-in benchmark: street video in two appearances of the same kind of world, drawn from seeds."""

from stcl.twinstreets.camera import FRAME_RATE
from stcl.twinstreets.clip import LONGEST, RenderedFrame, StreetClip
from stcl.twinstreets.parts import SPACE_NAME
from stcl.twinstreets.seeding import VERSION
from stcl.twinstreets.styles import STYLE_NAMES, Style, get_style

__all__ = [
    "FRAME_RATE",
    "LONGEST",
    "SPACE_NAME",
    "STYLE_NAMES",
    "VERSION",
    "RenderedFrame",
    "StreetClip",
    "Style",
    "get_style",
]
