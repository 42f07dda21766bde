"""The two appearances of the same kind of world, and how further ones are drawn from a seed.

Geometry and scale are shared; street statistics, optics, materials, light and sensor differ. Style seed 0 is the
benchmark itself; any other seed scales the numbers below at random, which gives further domain pairs.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from stcl.errors import SettingError, unknown_name
from stcl.twinstreets.seeding import generator

Range = tuple[float, float]
Group = TypeVar("Group", "Optics", "StreetStatistics", "Look")


@dataclass(frozen=True)
class Optics:
    """The ego camera: focal length in image widths, height in metres, angles in degrees (pitch > 0 looks up)."""

    focal: float
    height: float
    pitch: float
    pitch_sway: float
    yaw_sway: float


@dataclass(frozen=True)
class StreetStatistics:
    """What streets of this family are like: ranges in metres, chances in [0, 1]."""

    lane_width: Range
    two_lanes: float  # chance of two lanes each way
    parking: float  # chance of a parking lane, each side
    parked: Range  # share of parking places taken
    verge: float  # chance of a strip of grass beside the kerb
    sidewalk: Range
    setback: Range  # house fronts behind the sidewalk
    house_height: Range
    house_width: Range
    gap: float  # chance of a gap after a house
    pitched_roof: float
    tree_spacing: Range
    tree_height: Range
    treeless: float  # chance of a street side without street trees
    hedge: float  # chance of a hedge before a front garden
    fence: float  # chance of a fence before a front garden
    pole_spacing: Range
    sign_spacing: Range
    people_spacing: Range  # metres of one sidewalk for each person
    rider: float  # expected riders on the first 60 m, each side
    traffic_spacing: Range
    junction_spacing: Range
    bend: float  # largest curvature in 1/m


@dataclass(frozen=True)
class Look:
    """Materials, light and sensor. Ranges are drawn once a clip."""

    saturation: float
    brightness: float
    texture: float  # strength of surface noise
    hue: float  # turn of all material colours, in degrees
    even_light: float  # chance of light without a sun
    sun_height: Range  # degrees
    sun_strength: Range
    shadows: bool
    haze: Range  # extinction in 1/m
    blur: Range  # standard deviation in 1/1000 of the image width
    shutter: float  # share of the frame time that the shutter is open
    noise: Range  # standard deviation in 1/255
    jpeg_quality: Range  # 0 leaves the compression out
    vignette: float
    exposure_drift: float
    color_cast: float


@dataclass(frozen=True)
class Style:
    """One appearance family; see :func:`get_style`."""

    name: str
    seed: int
    optics: Optics
    street: StreetStatistics
    look: Look


_CLEAN = Style(
    "clean",
    0,
    Optics(focal=0.90, height=1.6, pitch=-2.5, pitch_sway=0.25, yaw_sway=0.8),
    StreetStatistics(
        lane_width=(3.2, 4.2), two_lanes=0.45, parking=0.55, parked=(0.2, 0.6), verge=0.35, sidewalk=(1.8, 3.6),
        setback=(0.0, 6.0), house_height=(8.0, 24.0), house_width=(8.0, 20.0), gap=0.18, pitched_roof=0.35,
        tree_spacing=(7.0, 16.0), tree_height=(6.0, 10.5), treeless=0.2, hedge=0.6, fence=0.4,
        pole_spacing=(32.0, 56.0), sign_spacing=(30.0, 54.0), people_spacing=(10.0, 24.0), rider=0.2,
        traffic_spacing=(18.0, 45.0), junction_spacing=(38.0, 75.0), bend=1 / 350,
    ),
    Look(
        saturation=1.22, brightness=1.05, texture=0.5, hue=0.0, even_light=1.0, sun_height=(45.0, 70.0),
        sun_strength=(0.2, 0.4), shadows=False, haze=(0.0, 0.001), blur=(0.0, 0.0), shutter=0.0, noise=(0.0, 0.0),
        jpeg_quality=(0.0, 0.0), vignette=0.0, exposure_drift=0.0, color_cast=0.0,
    ),
)  # fmt: skip

_CAMERA = Style(
    "camera",
    0,
    Optics(focal=1.06, height=1.3, pitch=-1.7, pitch_sway=0.5, yaw_sway=1.2),
    StreetStatistics(
        lane_width=(2.9, 3.7), two_lanes=0.3, parking=0.55, parked=(0.2, 0.7), verge=0.3, sidewalk=(1.6, 4.2),
        setback=(0.0, 7.0), house_height=(7.5, 21.0), house_width=(7.0, 17.0), gap=0.18, pitched_roof=0.5,
        tree_spacing=(6.5, 16.0), tree_height=(6.0, 11.5), treeless=0.2, hedge=0.7, fence=0.34,
        pole_spacing=(36.0, 60.0), sign_spacing=(26.0, 50.0), people_spacing=(16.0, 40.0), rider=0.18,
        traffic_spacing=(24.0, 60.0), junction_spacing=(42.0, 80.0), bend=1 / 260,
    ),
    Look(
        saturation=0.8, brightness=0.95, texture=1.0, hue=0.0, even_light=0.45, sun_height=(14.0, 50.0),
        sun_strength=(0.45, 0.8), shadows=True, haze=(0.001, 0.006), blur=(1.2, 2.0), shutter=0.25, noise=(1.5, 4.0),
        jpeg_quality=(62.0, 90.0), vignette=0.3, exposure_drift=0.08, color_cast=0.035,
    ),
)  # fmt: skip

_STYLES = {style.name: style for style in (_CLEAN, _CAMERA)}
STYLE_NAMES: tuple[str, ...] = tuple(_STYLES)


def get_style(name: str, seed: int = 0) -> Style:
    """The style `name`; seed 0 is the benchmark's, other seeds are relatives of it for further domain pairs."""
    if name not in _STYLES:
        raise SettingError(unknown_name("TwinStreets style", name, STYLE_NAMES))
    style = _STYLES[name]
    if seed == 0:
        return style
    random = generator("style", name, seed)
    look = _vary(style.look, random, spread=0.15)
    return Style(
        name,
        seed,
        _vary(style.optics, random, spread=0.07),
        _vary(style.street, random, spread=0.12),
        replace(look, hue=float(random.uniform(-25.0, 25.0))),
    )


def _vary(group: Group, random: np.random.Generator, spread: float) -> Group:
    """Each number, or each range as a whole, times its own log-normal factor."""
    changed: dict[str, Any] = {}
    for item in fields(group):
        value = getattr(group, item.name)
        factor = float(np.exp(spread * random.standard_normal()))
        if isinstance(value, bool):
            continue
        changed[item.name] = tuple(factor * bound for bound in value) if isinstance(value, tuple) else factor * value
    return replace(group, **changed)
