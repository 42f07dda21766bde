"""A random street: its ground plan and everything that stands, walks or drives on it."""

import numpy as np

from stcl.twinstreets.camera import EgoPath
from stcl.twinstreets.palettes import Palette
from stcl.twinstreets.parts import PartList, PartTable
from stcl.twinstreets.roadside import Roadside
from stcl.twinstreets.seeding import generator
from stcl.twinstreets.street import LENGTH, Junction, Side, Street
from stcl.twinstreets.styles import StreetStatistics, Style
from stcl.twinstreets.traffic import Traffic

Random = np.random.Generator


class World:
    """Street, parts and ego path of one clip; a function of the style and the clip seed alone."""

    def __init__(self, style: Style, seed: int) -> None:
        def stream(purpose: str) -> Random:
            """Own random numbers for each purpose, so that a change to one leaves the others alone."""
            return generator(style.name, style.seed, seed, purpose)

        self.palette = Palette(style.look)
        self.street = _draw_street(style.street, stream("street"))
        self.ego = EgoPath.draw(style.optics, self.street, stream("ego"))
        things = PartList()
        roadside = Roadside(self.street, style.street, self.palette, things)
        traffic = Traffic(self.street, style.street, self.palette, things)
        for side in (0, 1):
            roadside.houses(side, stream(f"houses {side}"))
            roadside.backdrop(side, stream(f"backdrop {side}"))
            roadside.gardens(side, stream(f"gardens {side}"))
            roadside.trees(side, stream(f"trees {side}"))
            roadside.posts(side, stream(f"posts {side}"))
            traffic.parked_cars(side, stream(f"parked {side}"))
            traffic.walkers(side, stream(f"walkers {side}"))
            traffic.crossers(side, stream(f"crossers {side}"))
            traffic.riders(side, stream(f"riders {side}"))
            traffic.moving_cars(side, stream(f"cars {side}"), self.ego.speed)
        roadside.signals(stream("signals"))
        roadside.end(stream("end"))
        self.table = PartTable(things)


def _draw_street(statistics: StreetStatistics, random: Random) -> Street:
    def side() -> Side:
        parking = random.uniform(2.0, 2.4) if random.random() < statistics.parking else 0.0
        verge = random.uniform(1.0, 2.4) if random.random() < statistics.verge else 0.0
        setback = max(0.0, random.uniform(*statistics.setback) - 1.0)
        paved = setback < 1.5 or random.random() < 0.2
        return Side(parking, verge, random.uniform(*statistics.sidewalk), setback, bool(paved))

    junctions, station = [], random.uniform(10.0, 40.0)
    while station < LENGTH - 40.0:
        arm = random.uniform(3.0, 4.5) if random.random() < 0.6 else 0.0
        junctions.append(Junction(station, arm, bool(random.random() < 0.42)))
        station += random.uniform(*statistics.junction_spacing)
    lanes = 2 if random.random() < statistics.two_lanes else 1
    bend = random.uniform(-1.0, 1.0) * statistics.bend
    return Street(bend, random.uniform(*statistics.lane_width), lanes, (side(), side()), tuple(junctions))
