"""Weather of a clip: sun, sky light, haze and the sky itself; and shadows on the ground."""

from dataclasses import dataclass

import cv2
import numpy as np

from stcl.twinstreets.parts import FIRST_SOLID, PartTable
from stcl.twinstreets.street import START, Street
from stcl.twinstreets.styles import Look
from stcl.twinstreets.textures import noise_tile, sample

_CELL = 0.125  # metres of ground for each texel of the shadow map
_REACH = 24.0  # metres of ground on each side of the centre line
_AHEAD = 190.0  # metres of station
_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)


@dataclass(frozen=True)
class Weather:
    """Light of one clip. Colours (3,); `sun` points towards the sun."""

    sun: np.ndarray
    sun_color: np.ndarray
    sky_light: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    clouds: float
    haze: float  # 1/m
    casts_shadows: bool

    @staticmethod
    def draw(look: Look, random: np.random.Generator) -> "Weather":
        """Even light, or a sun at a random height and bearing."""
        even = bool(random.random() < look.even_light)
        height, bearing = np.radians(random.uniform(*look.sun_height)), random.uniform(0.0, 2 * np.pi)
        sun = np.array([np.cos(height) * np.sin(bearing), np.sin(height), np.cos(height) * np.cos(bearing)])
        strength, haze = random.uniform(*look.sun_strength), random.uniform(*look.haze)
        low = float(np.clip(1.0 - np.degrees(height) / 40.0, 0.0, 1.0))  # a low sun is warm
        if not look.shadows:  # the even light of a game engine: a blue sky, faint modelling
            zenith, horizon = np.array([0.30, 0.52, 0.90]), np.array([0.68, 0.82, 0.97])
            sky_light, sun_color = np.full(3, 0.80), np.full(3, strength)
            clouds = random.uniform(0.05, 0.45)
        elif even:
            grey = random.uniform(0.72, 0.95)
            zenith, horizon = grey * np.array([0.93, 0.96, 1.0]), grey * np.array([1.0, 1.01, 1.02])
            sky_light, sun_color = random.uniform(0.6, 0.85) * np.array([0.97, 1.0, 1.04]), np.full(3, 0.08)
            clouds = random.uniform(0.1, 0.4)
        else:
            zenith = np.array([0.45, 0.60, 0.82])
            horizon = np.array([0.86, 0.88, 0.90]) + low * np.array([0.1, 0.0, -0.1])
            sky_light = random.uniform(0.46, 0.58) * np.array([0.92, 0.98, 1.1])
            sun_color = strength * np.array([1.05, 0.98 - 0.12 * low, 0.90 - 0.28 * low])
            clouds = random.uniform(0.0, 0.7)
        return Weather(sun, sun_color, sky_light, zenith, horizon, clouds, haze, look.shadows and not even)

    @property
    def metering(self) -> float:
        """Gain that brings level ground in the open to the same brightness in any weather."""
        level = float(self.sky_light.mean() + 0.6 * self.sun_color.mean() * self.sun[1])
        return 1.0 if not self.casts_shadows and level > 0.9 else float(np.clip(0.92 / level, 0.8, 1.5))

    def shade(self, normal: np.ndarray, sunlit: np.ndarray | float) -> np.ndarray:
        """Light (3, n) on surfaces with world normals (3, n)."""
        sun = self.sun.astype(np.float32)
        facing = np.maximum(np.tensordot(sun, normal, 1), 0.0) * sunlit
        open_sky = 0.8 + 0.2 * normal[1]
        return (
            self.sky_light.astype(np.float32)[:, None] * open_sky + self.sun_color.astype(np.float32)[:, None] * facing
        )

    def sky(self, directions: np.ndarray) -> np.ndarray:
        """(3, h, w) colours of the sky along world directions (3, h, w)."""
        x, y, z = directions
        up = np.maximum(y / np.sqrt(x * x + y * y + z * z), 0.0)
        blend = np.clip(up * 2.2, 0.0, 1.0)
        color = (1 - blend) * self.horizon.astype(np.float32)[:, None, None]
        color += blend * self.zenith.astype(np.float32)[:, None, None]
        spread = 40.0 / (up + 0.12)  # a layer of clouds overhead, crowding at the horizon
        noise = sample(noise_tile(1.3), x * spread, z * spread)
        cover = np.clip((noise + self.clouds - 0.35) * 2.0, 0.0, 1.0) * min(1.0, 2.0 * self.clouds)
        bright = np.float32(self.horizon.max())
        return color + (bright - color) * cover


class ShadowMap:
    """Shadows on the ground, drawn in street coordinates: (station, lateral) texels, 255 = lit.

    Shadows at rest are drawn once; moving ones are drawn into a copy for each frame.
    """

    def __init__(self, table: PartTable, street: Street, weather: Weather, rotation: np.ndarray, position: np.ndarray):
        self.table, self.street, self.weather = table, street, weather
        shape = (int((_AHEAD - START) / _CELL), int(2 * _REACH / _CELL))
        solid = np.arange(len(table)) >= FIRST_SOLID
        self._moving = np.flatnonzero(table.moving)
        still = np.flatnonzero(solid & ~table.moving)
        self._sun, self._contact = np.full(shape, 255, np.uint8), np.full(shape, 255, np.uint8)
        self._draw(self._sun, self._contact, still, rotation, position)

    def frame(self, rotation: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sun and contact maps for one time."""
        sun, contact = self._sun.copy(), self._contact.copy()
        self._draw(sun, contact, self._moving, rotation, position)
        return sun, contact

    def _draw(
        self, sun: np.ndarray, contact: np.ndarray, rows: np.ndarray, rotation: np.ndarray, position: np.ndarray
    ) -> None:
        if not len(rows):
            return
        half = self.table.half[rows]
        corners = position[rows, :, None] + (rotation[rows] * half[:, None]) @ _CORNERS.T  # (n, 3, 8)
        bottom = corners[:, 1].min(1)
        small = np.abs(half).max(1) < 4.0  # houses meet the ground without a gap
        if self.weather.casts_shadows:
            slope = self.weather.sun / max(self.weather.sun[1], 0.2)
            x, z = corners[:, 0] - corners[:, 1] * slope[0], corners[:, 2] - corners[:, 1] * slope[2]
            self._fill(sun, x, z, np.ones(len(rows), bool), 0)
        self._fill(contact, corners[:, 0], corners[:, 2], (bottom < 0.5) & small, 90)

    def _fill(self, raster: np.ndarray, x: np.ndarray, z: np.ndarray, chosen: np.ndarray, value: int) -> None:
        station, lateral = self.street.locate(x, z)
        texels = np.stack([(lateral + _REACH) / _CELL, (station - START) / _CELL], -1)  # (n, 8, 2)
        height, width = raster.shape
        inside = (texels.max(1) > 0).all(-1) & (texels.min(1) < (width, height)).all(-1)
        for outline in np.rint(texels[chosen & inside]).astype(np.int32):
            cv2.fillConvexPoly(raster, cv2.convexHull(outline), value)

    def lookup(self, raster: np.ndarray, station: np.ndarray, lateral: np.ndarray) -> np.ndarray:
        """Share of light in [0, 1] at ground points (h, w)."""
        x = np.clip((lateral + _REACH) / _CELL, -1.0, raster.shape[1]).astype(np.float32)
        y = np.clip((station - START) / _CELL, -1.0, raster.shape[0]).astype(np.float32)
        lit = cv2.remap(raster, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=255)
        return lit.astype(np.float32) * np.float32(1 / 255)
