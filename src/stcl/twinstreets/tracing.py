"""Which part each pixel sees, and how far away: the geometry of one frame."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stcl.twinstreets.camera import FRAME_RATE, Lens, Pose
from stcl.twinstreets.parts import FIRST_SOLID, GRASS, SKY, PartTable, Shape, rotation_x, rotation_y
from stcl.twinstreets.shapes import INTERSECT, Form
from stcl.twinstreets.street import Street
from stcl.twinstreets.world import World

NEAR = 0.3  # metres; nothing nearer is seen
FAR = 320.0  # solids beyond are not traced
HORIZON = 2000.0  # ground beyond counts as sky
BATCH_AREA = 700  # screen boxes up to this many pixels are traced together
_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)  # (8, 3)


class PartPoses:
    """Part to world at any time: rotation (P, 3, 3) and position (P, 3). Parts at rest are placed once."""

    def __init__(self, table: PartTable, street: Street) -> None:
        self.table, self.street = table, street
        everything = np.arange(len(table))
        self._rest = self._place(everything, 0.0)
        self._moving = np.flatnonzero(table.moving)

    def at(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """All poses `time` seconds after frame 0."""
        rotation, position = self._rest[0].copy(), self._rest[1].copy()
        if len(self._moving):
            rotation[self._moving], position[self._moving] = self._place(self._moving, time)
        return rotation, position

    def _place(self, rows: np.ndarray, time: float) -> tuple[np.ndarray, np.ndarray]:
        table = self.table
        amplitude, rate, phase = table.swing[rows].T
        swing = rotation_x(amplitude * np.sin(rate * time + phase))
        pivot = table.pivot[rows]
        within = pivot + (swing @ (table.centre[rows] - pivot)[..., None])[..., 0]
        station = table.station[rows] + table.speed[rows] * time
        lateral = table.lateral[rows] + table.cross_speed[rows] * time
        x, z, heading = self.street.place(station, lateral)
        turn = rotation_y(heading + table.yaw[rows])
        position = (turn @ within[..., None])[..., 0] + np.stack([x, np.zeros_like(x), z], -1)
        solid = rows >= FIRST_SOLID
        position[~solid] = 0.0
        rotation = turn @ swing @ table.turn[rows]
        rotation[~solid] = np.eye(3)
        return rotation, position


@dataclass
class Geometry:
    """What the rays of one frame hit.

    Attributes:
        inverse_depth: (H, W) float32 in 1/m, 0 for sky.
        part: (H, W) int32 rows of the part table.
        rotation, position: part poses at this time, (P, 3, 3) and (P, 3).
    """

    lens: Lens
    time: float
    camera: Pose
    rotation: np.ndarray
    position: np.ndarray
    inverse_depth: np.ndarray
    part: np.ndarray

    @cached_property
    def depth(self) -> np.ndarray:
        """(H, W) float32 metres along the optical axis, inf for sky."""
        with np.errstate(divide="ignore"):
            return np.float32(1.0) / self.inverse_depth

    @cached_property
    def directions(self) -> np.ndarray:
        """(3, H, W) float32 world directions of the rays, scaled so that one unit is one metre of depth."""
        right, up = self.lens.rays()
        turn = self.camera.rotation.astype(np.float32)
        return turn[:, 0, None, None] * right + (turn[:, 1, None] * up + turn[:, 2, None])[:, :, None]

    @cached_property
    def points(self) -> np.ndarray:
        """(3, H, W) float32 world points in metres; sky lies at `HORIZON`."""
        reach = np.minimum(self.depth, np.float32(HORIZON))
        return self.directions * reach + self.camera.position.astype(np.float32)[:, None, None]


class Tracer:
    """Traces the frames of one world through one lens."""

    def __init__(self, world: World, lens: Lens) -> None:
        self.world, self.lens, self.table = world, lens, world.table
        self.poses = PartPoses(world.table, world.street)

    def trace(self, index: int) -> Geometry:
        """Geometry of frame `index`."""
        time = index / FRAME_RATE
        camera = self.world.ego.pose(time)
        rotation, position = self.poses.at(time)
        right, up = self.lens.rays()
        # the ground is the plane y = 0: depth = height / fall of the ray
        turn = camera.rotation
        fall = -(turn[1, 0] * right[None] + (turn[1, 1] * up + turn[1, 2])[:, None])
        inverse = (fall / camera.position[1]).astype(np.float32)
        is_ground = inverse > 1.0 / HORIZON
        inverse = np.where(is_ground, inverse, np.float32(0.0))
        part = np.where(is_ground, np.int32(GRASS), np.int32(SKY))
        geometry = Geometry(self.lens, time, camera, rotation, position, inverse, part)
        self._trace_solids(geometry, right, up)
        ground = np.flatnonzero(part == GRASS)
        x, _, z = geometry.points.reshape(3, -1)[:, ground]
        part.reshape(-1)[ground] = self.world.street.zones(*self.world.street.locate(x, z))
        return geometry

    def _screen_boxes(self, geometry: Geometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Visible part rows, near to far, their screen boxes (n, 4) x0 x1 y0 y1 (ends excluded), nearest depths."""
        camera, lens = geometry.camera, self.lens
        offset = (geometry.position - camera.position) @ camera.rotation  # (P, 3) camera axes
        reach = np.linalg.norm(self.table.half, axis=1)
        rows = np.flatnonzero((offset[:, 2] + reach > NEAR) & (offset[:, 2] - reach < FAR))
        rows = rows[rows >= FIRST_SOLID]
        axes = camera.rotation.T @ geometry.rotation[rows] * self.table.half[rows, None]  # (n, 3, 3)
        corners = offset[rows, :, None] + axes @ _CORNERS.T  # (n, 3, 8)
        x, y, z = corners[:, 0], corners[:, 1], corners[:, 2]
        ahead = np.maximum(z, NEAR)
        # a box that crosses the near plane is bounded by its corners moved onto that plane as well
        crossing = (z < NEAR).any(1)[:, None]
        x = np.concatenate([x / ahead, np.where(crossing, x / NEAR, x / ahead)], 1)
        y = np.concatenate([y / ahead, np.where(crossing, y / NEAR, y / ahead)], 1)
        cx, cy = lens.center
        low_x, high_x = cx + lens.focal * x.min(1), cx + lens.focal * x.max(1)
        low_y, high_y = cy - lens.focal * y.max(1), cy - lens.focal * y.min(1)
        bounds = np.stack([np.ceil(low_x), np.floor(high_x) + 1, np.ceil(low_y), np.floor(high_y) + 1], 1)
        bounds = np.clip(bounds, 0, [lens.width, lens.width, lens.height, lens.height]).astype(np.int64)
        seen = (z.max(1) > NEAR) & (bounds[:, 1] > bounds[:, 0]) & (bounds[:, 3] > bounds[:, 2])
        nearest = ahead.min(1)
        order = np.argsort(np.where(seen, nearest, np.inf), kind="stable")[: int(seen.sum())]
        return rows[order], bounds[order], nearest[order]

    def _trace_solids(self, geometry: Geometry, right: np.ndarray, up: np.ndarray) -> None:
        table, camera = self.table, geometry.camera
        rows, bounds, nearest = self._screen_boxes(geometry)
        to_unit = np.swapaxes(geometry.rotation[rows], 1, 2) / table.half[rows, :, None]  # (n, 3, 3)
        origin = (to_unit @ (camera.position - geometry.position[rows])[..., None])[..., 0].astype(np.float32)  # (n, 3)
        turn = (to_unit @ camera.rotation).astype(np.float32)  # (n, 3, 3) camera ray -> unit axes
        area = (bounds[:, 1] - bounds[:, 0]) * (bounds[:, 3] - bounds[:, 2])
        for i in np.flatnonzero(area > BATCH_AREA):
            self._trace_one(geometry, rows[i], bounds[i], nearest[i], origin[i], turn[i], right, up)
        shapes = table.shape[rows]
        small = area <= BATCH_AREA
        if small.any():  # a small box is skipped where everything in it is nearer already
            small[small] = [
                geometry.inverse_depth[y0:y1, x0:x1].min() * near < 1.0
                for (x0, x1, y0, y1), near in zip(bounds[small].tolist(), nearest[small].tolist(), strict=True)
            ]
        for shape in Shape:
            group = np.flatnonzero(small & (shapes == shape))
            if len(group):
                self._trace_batch(geometry, shape, rows[group], bounds[group], origin[group], turn[group], right, up)

    def _form(self, rows: np.ndarray, depth: np.ndarray) -> Form:
        table = self.table
        half, tapers = table.half[rows].astype(np.float32).T, table.taper[rows].astype(np.float32).T
        seed = table.seed[rows].astype(np.float32)
        spacing = (depth / self.lens.focal).astype(np.float32)
        return Form(tuple(half), tuple(tapers), tuple(table.detail[:, rows]), seed, spacing)  # type: ignore[arg-type]

    def _trace_one(
        self, geometry: Geometry, row: int, bounds: np.ndarray, nearest: float, origin: np.ndarray, turn: np.ndarray,
        right: np.ndarray, up: np.ndarray,
    ) -> None:  # fmt: skip
        """One large part against the rays of its screen box."""
        x0, x1, y0, y1 = bounds
        inverse, part = geometry.inverse_depth[y0:y1, x0:x1], geometry.part[y0:y1, x0:x1]
        if inverse.min() * nearest >= 1.0:
            return
        column, line = right[x0:x1], up[y0:y1]
        direction = tuple(turn[a, 0] * column + (turn[a, 1] * line + turn[a, 2])[:, None] for a in range(3))
        enter = INTERSECT[Shape(self.table.shape[row])](tuple(origin), direction, self._form(row, np.float64(nearest)))  # type: ignore[arg-type]
        hit = 1.0 / enter
        nearer = (hit > inverse) & (enter > NEAR)
        np.copyto(inverse, hit, where=nearer)
        np.copyto(part, row, where=nearer)

    def _trace_batch(
        self, geometry: Geometry, shape: Shape, rows: np.ndarray, bounds: np.ndarray, origin: np.ndarray,
        turn: np.ndarray, right: np.ndarray, up: np.ndarray,
    ) -> None:  # fmt: skip
        """Many small parts of one shape: every (part, pixel) pair of their screen boxes at once."""
        wide, high = bounds[:, 1] - bounds[:, 0], bounds[:, 3] - bounds[:, 2]
        count = wide * high
        first = np.cumsum(count) - count
        pair = np.repeat(np.arange(len(rows)), count)  # (n,) which part
        rank = np.arange(len(pair)) - first[pair]
        y = rank // wide[pair]
        x = rank - y * wide[pair] + bounds[pair, 0]
        y += bounds[pair, 2]
        column, line = right[x], up[y]
        terms = turn.reshape(-1, 9).T[:, pair]  # (9, n)
        direction = tuple(terms[3 * a] * column + terms[3 * a + 1] * line + terms[3 * a + 2] for a in range(3))
        starts = tuple(origin.T[:, pair])
        centre_depth = ((geometry.position[rows] - geometry.camera.position) @ geometry.camera.rotation)[:, 2]
        enter = INTERSECT[shape](starts, direction, self._form(rows[pair], centre_depth[pair]))  # type: ignore[arg-type]
        pixel = y * self.lens.width + x
        inverse, part = geometry.inverse_depth.reshape(-1), geometry.part.reshape(-1)
        hit = 1.0 / enter
        keep = np.flatnonzero((hit > inverse[pixel]) & (enter > NEAR))
        # far to near, so that the nearest hit of a pixel is written last
        keep = keep[np.argsort(hit[keep], kind="stable")]
        inverse[pixel[keep]] = hit[keep]
        part[pixel[keep]] = rows[pair[keep]]
