"""From traced geometry to an image and a label map."""

import cv2
import numpy as np

from stcl.twinstreets.camera import FRAME_RATE
from stcl.twinstreets.ground import GroundPainter, GroundPixels
from stcl.twinstreets.lighting import ShadowMap, Weather
from stcl.twinstreets.materials import PAINT
from stcl.twinstreets.parts import FIRST_SOLID, SKY, Material
from stcl.twinstreets.reprojection import reproject
from stcl.twinstreets.seeding import generator
from stcl.twinstreets.sensor import Sensor
from stcl.twinstreets.styles import Style
from stcl.twinstreets.surface import Surface, describe
from stcl.twinstreets.textures import noise_tile, sample
from stcl.twinstreets.tracing import HORIZON, Geometry, Tracer

_FINE, _COARSE = 22.0, 1.3  # noise texels for each metre of surface


class Painter:
    """Paints the frames of one clip."""

    def __init__(self, style: Style, seed: int, tracer: Tracer) -> None:
        world = tracer.world
        self.style, self.world, self.table, self.poses = style, world, world.table, tracer.poses
        keys = (style.name, style.seed, seed)
        self.weather = Weather.draw(style.look, generator(*keys, "weather"))
        self.ground = GroundPainter(world.street, world.palette, generator(*keys, "ground"), style.look.texture)
        self.shadows = ShadowMap(world.table, world.street, self.weather, *tracer.poses.at(0.0))
        self.sensor = Sensor(style, seed, tracer.lens, self.weather.metering)

    def paint(self, geometry: Geometry, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 and train ids (H, W) uint8."""
        part = geometry.part.reshape(-1)
        solid = np.flatnonzero(part >= FIRST_SOLID)
        ground = np.flatnonzero((part > SKY) & (part < FIRST_SOLID))
        x, _, z = geometry.points
        station, lateral = self.world.street.locate(x, z)
        surface = describe(geometry, self.table, solid)
        u, v = x.reshape(-1).copy(), z.reshape(-1).copy()
        u[solid], v[solid] = surface.u, surface.v
        fine, coarse = self._noise(u.reshape(x.shape), v.reshape(x.shape), geometry)
        surface.fine, surface.coarse = fine.reshape(-1)[solid], coarse.reshape(-1)[solid]

        light = np.zeros((3, part.size), np.float32)
        spacing = (geometry.depth * np.float32(1.0 / geometry.lens.focal)).reshape(-1)[ground]
        slant = spacing / np.maximum(-geometry.directions[1].reshape(-1)[ground], 1e-3)
        pixels = GroundPixels(
            part[ground], station.reshape(-1)[ground], lateral.reshape(-1)[ground], spacing, slant,
            fine.reshape(-1)[ground], coarse.reshape(-1)[ground],
        )  # fmt: skip
        light[:, ground] = self.ground.paint(pixels) * self._ground_light(geometry, station, lateral)[:, ground]
        light[:, solid] = self._solids(surface)
        radiance = light.reshape(3, *x.shape)
        self._haze_and_sky(radiance, geometry)
        radiance = np.ascontiguousarray(np.moveaxis(radiance, 0, 2))
        radiance = self._soften_edges(radiance, geometry.part)
        return self.sensor.develop(radiance, index, self._smear(geometry)), self.table.label[geometry.part]

    def _noise(self, u: np.ndarray, v: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
        spacing = geometry.depth * np.float32(1.0 / geometry.lens.focal)
        fade = np.clip(1.2 / (_FINE * spacing), 0.0, 1.0)
        fine = sample(noise_tile(0.8), u * np.float32(_FINE), v * np.float32(_FINE)) * fade
        coarse = sample(noise_tile(1.1), u * np.float32(_COARSE), v * np.float32(_COARSE))
        return fine, coarse

    def _ground_light(self, geometry: Geometry, station: np.ndarray, lateral: np.ndarray) -> np.ndarray:
        """(3, H * W) light on the ground."""
        sun, contact = self.shadows.frame(geometry.rotation, geometry.position)
        touch = self.shadows.lookup(cv2.blur(contact, (5, 5)), station, lateral)
        sunlit = self.shadows.lookup(sun, station, lateral) if self.weather.casts_shadows else np.float32(1.0)
        up = np.zeros((3, 1), np.float32)
        up[1] = 1.0
        lit = np.broadcast_to(sunlit, station.shape).reshape(-1)
        return self.weather.shade(up, lit) * touch.reshape(-1)

    def _solids(self, surface: Surface) -> np.ndarray:
        """(3, n) light from solids."""
        material = self.table.material[surface.row]
        color = np.empty_like(surface.color)
        for kind in np.unique(material):
            index = np.flatnonzero(material == kind)
            color[:, index] = PAINT[Material(kind)](surface.take(index), self.style.look.texture)
        return color * self.weather.shade(surface.normal, 1.0)

    def _haze_and_sky(self, radiance: np.ndarray, geometry: Geometry) -> None:
        weather = self.weather
        clear = np.exp(-np.float32(weather.haze) * np.minimum(geometry.depth, np.float32(HORIZON)))
        air = (weather.horizon * 0.92).astype(np.float32)[:, None, None]
        radiance *= clear
        radiance += air * (1.0 - clear)
        rows = np.flatnonzero((geometry.part == SKY).any(1))
        if len(rows):
            top = slice(0, int(rows[-1]) + 1)
            sky = weather.sky(geometry.directions[:, top])
            np.copyto(radiance[:, top], sky, where=geometry.part[top] == SKY)

    @staticmethod
    def _soften_edges(radiance: np.ndarray, part: np.ndarray) -> np.ndarray:
        """One ray a pixel leaves stairs at outlines; blend across them."""
        edge = np.zeros(part.shape, bool)
        across, down = part[:, 1:] != part[:, :-1], part[1:] != part[:-1]
        edge[:, 1:] |= across
        edge[:, :-1] |= across
        edge[1:] |= down
        edge[:-1] |= down
        soft = cv2.GaussianBlur(radiance, (3, 3), 0.6)
        return np.where(edge[..., None], soft, radiance)

    def _smear(self, geometry: Geometry) -> np.ndarray | None:
        """(2, H, W) motion in px while the shutter is open."""
        shutter = self.style.look.shutter
        if not shutter:
            return None
        earlier = geometry.time - shutter / FRAME_RATE
        camera = self.world.ego.pose(earlier)
        return reproject(geometry, self.table, camera, *self.poses.at(earlier))[0]
