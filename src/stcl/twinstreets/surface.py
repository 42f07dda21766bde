"""What a material needs to know about the pixels that it paints."""

from dataclasses import dataclass, fields

import numpy as np

from stcl.twinstreets.parts import PartTable, Shape
from stcl.twinstreets.tracing import Geometry

_ROUND = np.isin(np.arange(len(Shape)), [Shape.BALL, Shape.TUBE, Shape.CROWN])
_UPRIGHT = np.arange(len(Shape)) == Shape.TUBE


@dataclass
class Surface:
    """Per-pixel facts as flat arrays over n pixels of solids; lengths in metres, axes of the part.

    `unit` is the place on the unit solid, `axis` the face of a box (0 side, 1 top, 2 front or back; -1 on round
    shapes), `spacing` the size of a pixel there, `u` and `v` coordinates on the surface for textures.
    """

    row: np.ndarray  # (n,) part
    local: np.ndarray  # (3, n)
    unit: np.ndarray  # (3, n)
    half: np.ndarray  # (3, n)
    axis: np.ndarray  # (n,)
    normal: np.ndarray  # (3, n) world
    spacing: np.ndarray
    u: np.ndarray
    v: np.ndarray
    fine: np.ndarray  # (n,) noise in [-1, 1], faded where pixels are too coarse for it
    coarse: np.ndarray
    color: np.ndarray  # (3, n)
    second: np.ndarray
    detail: np.ndarray  # (4, n)
    seed: np.ndarray

    def take(self, index: np.ndarray) -> "Surface":
        """The facts of some of the pixels."""
        return Surface(*(getattr(self, item.name)[..., index] for item in fields(self)))


def describe(geometry: Geometry, table: PartTable, solid: np.ndarray) -> Surface:
    """Facts about the pixels with flat indices `solid`; the noise is filled in later, for the whole frame at once."""
    row = geometry.part.reshape(-1)[solid]
    rotation = geometry.rotation.astype(np.float32).reshape(-1, 9).T[:, row]  # (9, n), row-major
    offset = geometry.points.reshape(3, -1)[:, solid] - geometry.position.astype(np.float32).T[:, row]
    local = np.stack([sum(rotation[3 * i + a] * offset[i] for i in range(3)) for a in range(3)])  # R^T offset
    half = table.half.astype(np.float32).T[:, row]
    unit = local / half
    shape = table.shape[row]
    slant = 0.5 * table.taper.astype(np.float32).T[:, row]  # (2, n)
    height = unit[1] + 1.0
    beyond = np.stack([np.abs(unit[0]) + slant[0] * height, np.abs(unit[1]), np.abs(unit[2]) + slant[1] * height])
    is_round = _ROUND[shape]
    axis = np.where(is_round, -1, beyond.argmax(0))
    normal = np.where(is_round | (axis == np.arange(3)[:, None]), unit, 0.0)
    normal = np.where(is_round, normal, np.sign(normal))
    normal[1] = np.where(axis == 0, slant[0], np.where(axis == 2, slant[1], normal[1]))
    normal[1, _UPRIGHT[shape]] = 0.0
    normal /= half
    world = np.stack([sum(rotation[3 * a + i] * normal[i] for i in range(3)) for a in range(3)])
    world /= np.sqrt((world * world).sum(0)) + np.float32(1e-9)
    x, y, z = local
    seed = table.seed[row]
    face = np.abs(unit).argmax(0)  # round things are textured from the side that they face
    face = np.where(is_round, face, axis)
    u = np.where(face == 0, z, x) + (seed & 255)
    v = np.where(face == 1, z, y)
    spacing = geometry.depth.reshape(-1)[solid] * np.float32(1.0 / geometry.lens.focal)
    blank = np.zeros_like(x)
    return Surface(
        row, local, unit, half, axis, world, spacing, u, v, blank, blank,
        table.color[:, row], table.second[:, row], table.detail[:, row], seed,
    )  # fmt: skip
