"""Placing objects along a street."""

from stcl.twinstreets.palettes import Palette
from stcl.twinstreets.parts import Part, PartList, Track
from stcl.twinstreets.street import Street
from stcl.twinstreets.styles import StreetStatistics


class Site:
    """Where objects are placed; `side` is 0 for left, 1 for right, and `sign` its direction across the street."""

    def __init__(self, street: Street, statistics: StreetStatistics, palette: Palette, things: PartList) -> None:
        self.street, self.statistics, self.palette, self.things = street, statistics, palette, things

    def put(self, parts: list[Part], station: float, lateral: float, yaw: float = 0.0, speed: float = 0.0,
            cross_speed: float = 0.0) -> None:  # fmt: skip
        """One object; `speed` counts along the street, `cross_speed` to the right."""
        self.things.add(Track(station, lateral, yaw, speed, cross_speed), parts)

    def near_junction(self, station: float, margin: float, arms_only: bool = True) -> bool:
        """Whether a thing at `station` would stand in a side street or on a zebra."""
        return any(
            abs(station - junction.station) < junction.arm + margin
            for junction in self.street.junctions
            if junction.arm or not arms_only
        )
