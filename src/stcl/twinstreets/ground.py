"""How the ground looks: asphalt, marks, kerbs, paving and grass."""

from dataclasses import dataclass

import numpy as np

from stcl.twinstreets.palettes import Palette
from stcl.twinstreets.parts import GRASS, ROAD, SIDEWALK
from stcl.twinstreets.street import KERB, Street


@dataclass
class GroundPixels:
    """n pixels of the ground: zone, street coordinates and size of a pixel across and along, in metres."""

    zone: np.ndarray
    station: np.ndarray
    lateral: np.ndarray
    across: np.ndarray
    along: np.ndarray
    fine: np.ndarray
    coarse: np.ndarray


class GroundPainter:
    """Ground of one clip."""

    def __init__(self, street: Street, palette: Palette, random: np.random.Generator, texture: float) -> None:
        self.street, self.texture = street, texture

        def pick(kind: str) -> np.ndarray:
            return np.array(palette.pick(kind, random), np.float32)[:, None]

        self.asphalt, self.paving = pick("asphalt"), pick("paving")
        self.grass, self.kerb = pick("grass"), pick("paving")
        self.mark = np.float32(random.uniform(0.78, 0.95))
        self.slab = np.float32(random.uniform(0.7, 1.6))
        self.dashed = bool(random.random() < 0.7)
        self.edge_lines = bool(random.random() < 0.6)

    def paint(self, pixels: GroundPixels) -> np.ndarray:
        """Colours (3, n) before light."""
        zone, out = pixels.zone, self.street.beyond_edge(pixels.lateral)
        fine, coarse = self.texture * pixels.fine, self.texture * pixels.coarse
        color = self.asphalt * (1.0 + 0.10 * fine + 0.13 * coarse)
        patch = pixels.coarse > 0.55  # mended asphalt
        color = color * np.where(patch, 1.0 - 0.12 * self.texture, 1.0)
        color = color + (self.mark - color) * self._marks(pixels)
        walk, grass = zone == SIDEWALK, zone == GRASS
        color = np.where(walk, self.paving * self._slabs(pixels) * (1.0 + 0.08 * fine + 0.12 * coarse), color)
        color = np.where(grass, self.grass * (1.0 + 0.3 * pixels.fine + 0.2 * pixels.coarse), color)
        stone = walk & (out >= 0) & (out < KERB)
        face = out < 0.4 * KERB  # the kerb's upright face lies in its own shade
        color = np.where(stone, self.kerb * np.where(face, 0.62, 1.12), color)
        gutter = (zone == ROAD) & (out > -0.35) & (out < 0)
        return np.where(gutter, 0.86 * color, color)

    def _slabs(self, pixels: GroundPixels) -> np.ndarray:
        joint = (np.mod(pixels.station / self.slab, 1.0) < 0.05) | (np.mod(pixels.lateral / self.slab, 1.0) < 0.05)
        return 1.0 - 0.2 * joint * np.clip(0.25 * self.slab / pixels.along, 0.0, 1.0)

    @staticmethod
    def _stripe(distance: np.ndarray, half: float, size: np.ndarray) -> np.ndarray:
        """Share of a pixel of width `size` that a stripe of half-width `half` covers."""
        return np.clip((half - np.abs(distance)) / size + 0.5, 0.0, 1.0) * np.minimum(1.0, 2.0 * half / size)

    def _marks(self, pixels: GroundPixels) -> np.ndarray:
        """Coverage by white marks in [0, 1]."""
        street, station, lateral = self.street, pixels.station, pixels.lateral
        phase = np.mod(station, 9.0)
        dash = np.clip((np.minimum(phase, 4.5 - phase)) / pixels.along + 0.5, 0.0, 1.0)
        dash = np.where(pixels.along > 4.0, 0.5, dash)
        marks = self._stripe(lateral, 0.08, pixels.across) * (dash if self.dashed else 1.0)
        for lane in range(1, street.lanes):
            apart = np.abs(lateral) - lane * street.lane_width
            marks = np.maximum(marks, self._stripe(apart, 0.07, pixels.across) * dash)
        width = street.lanes * street.lane_width
        for sign, side in zip((-1, 1), street.sides, strict=True):
            if side.parking or self.edge_lines:
                place = sign * (width - (0.0 if side.parking else 0.25))
                marks = np.maximum(marks, self._stripe(lateral - place, 0.06, pixels.across))
        bars = np.clip((0.25 - np.abs(np.mod(lateral, 1.0) - 0.5)) / pixels.across + 0.5, 0.0, 1.0)
        for junction in street.junctions:
            clear = np.abs(station - junction.station) < junction.arm + 4.4
            zebra = self._stripe(station - (junction.station - junction.arm - 1.9), 1.2, pixels.along) * bars
            stop = self._stripe(station - (junction.station - junction.arm - 3.9), 0.22, pixels.along) * (lateral > 0)
            marks = np.where(clear, np.maximum(zebra, stop), marks)
        return marks * (1.0 - 0.25 * self.texture * np.clip(pixels.fine + 0.4, 0.0, 1.0))
