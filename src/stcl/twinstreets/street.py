"""The ground plan of a street: a gently bent strip of road, kerbs, sidewalks and gardens, crossed by side streets."""

from dataclasses import dataclass

import numpy as np

from stcl.twinstreets.parts import GRASS, ROAD, SIDEWALK

LENGTH = 230.0  # metres of street that are furnished
START = -14.0  # station where furniture begins; the ego camera starts at station 0
KERB = 0.3  # width of the kerb stone in metres, labelled sidewalk


@dataclass(frozen=True)
class Side:
    """Widths in metres of what lies beside the road, from the kerb outwards."""

    parking: float
    verge: float
    sidewalk: float
    setback: float
    paved_yard: bool

    @property
    def front(self) -> float:
        """Distance from the road's edge to the garden line."""
        return KERB + self.verge + self.sidewalk


@dataclass(frozen=True)
class Junction:
    """A crossing at a station, with a zebra; `arm` is half the width of the side street, 0 for a zebra alone."""

    station: float
    arm: float
    signals: bool


@dataclass(frozen=True)
class Street:
    """Station runs along z, lateral to the right of the centre line; both in metres."""

    bend: float  # curvature in 1/m
    lane_width: float
    lanes: int  # each way
    sides: tuple[Side, Side]  # left, right
    junctions: tuple[Junction, ...]

    def edge(self, side: int) -> float:
        """Distance from the centre line to the kerb on side 0 (left) or 1 (right)."""
        return self.lanes * self.lane_width + self.sides[side].parking

    def place(self, station: np.ndarray, lateral: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """World x, z and heading (radians, to the right) of points given along and across the street."""
        heading = np.arctan(self.bend * station)
        x = 0.5 * self.bend * station**2 + lateral * np.cos(heading)
        return x, station - lateral * np.sin(heading), heading

    def locate(self, x: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Station and lateral of world points: inverse of `place` to first order, ample for a gentle bend."""
        slope = self.bend * z
        lateral = (x - 0.5 * self.bend * z * z) / np.sqrt(1.0 + slope * slope)
        return z + lateral * slope / (1.0 + slope * slope), lateral

    def beyond_edge(self, lateral: np.ndarray) -> np.ndarray:
        """Distance in metres from the road's edge, negative on the road."""
        return np.abs(lateral) - np.where(lateral > 0, np.float32(self.edge(1)), np.float32(self.edge(0)))

    def zones(self, station: np.ndarray, lateral: np.ndarray) -> np.ndarray:
        """Part number of ground points: ROAD, SIDEWALK or GRASS, int32."""
        right, out = lateral > 0, self.beyond_edge(lateral)
        zone = np.full(lateral.shape, GRASS, np.int32)
        for is_side, side in zip((~right, right), self.sides, strict=True):
            if side.paved_yard:
                zone[is_side] = SIDEWALK
            zone[is_side & (out < side.front)] = SIDEWALK
            if side.verge:
                zone[is_side & (out > KERB) & (out < KERB + side.verge)] = GRASS
        zone[out < 0] = ROAD
        for junction in self.junctions:
            if junction.arm:
                along = np.abs(station - junction.station)
                beside = out >= 0
                zone[beside & (along < junction.arm + 2.2)] = SIDEWALK
                zone[beside & (along < junction.arm)] = ROAD
        return zone
