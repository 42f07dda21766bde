"""What stands beside the road: houses, gardens, trees, posts, signs, signals, and the end of the street."""

import numpy as np

from stcl.twinstreets import furniture
from stcl.twinstreets.site import Site
from stcl.twinstreets.street import KERB, LENGTH, START, Junction

Random = np.random.Generator


class Roadside(Site):
    """Furnishes a street, one purpose a method, each with random numbers of its own."""

    def houses(self, side: int, random: Random) -> None:
        """A row of fronts behind the garden line, with gaps and side streets left open."""
        statistics, plan, sign = self.statistics, self.street.sides[side], (-1, 1)[side]
        line = self.street.edge(side) + plan.front + plan.setback
        typical = random.uniform(*statistics.house_height)
        pitched_street = random.random() < statistics.pitched_roof and typical < 11.0
        gap_chance = statistics.gap * random.uniform(0.2, 2.0)
        station = START
        while station < LENGTH:
            width = random.uniform(*statistics.house_width)
            middle = station + width / 2
            if self.near_junction(middle, width / 2 + 2.5):
                station += 2.0
                continue
            height = float(np.clip(typical * random.uniform(0.75, 1.3), 4.5, 28.0))
            depth = random.uniform(8.0, 14.0)
            back = line + (random.uniform(0.0, 1.2) if plan.setback > 1 else 0.0)
            pitched = pitched_street and random.random() < 0.9
            parts = furniture.house(random, self.palette, width, height, depth, pitched)
            # a house extends towards its +x: turned round on the left side of the street
            self.put(parts, middle, sign * back, yaw=0.0 if sign > 0 else np.pi)
            station += width
            if random.random() < gap_chance:
                space = random.uniform(3.0, 14.0)
                self._fill_gap(station, space, sign * back, random)
                station += space
            elif pitched_street:
                station += random.uniform(0.0, 3.0)

    def _fill_gap(self, station: float, space: float, lateral: float, random: Random) -> None:
        """Greenery, or a fence, between two houses."""
        sign = np.sign(lateral)
        if random.random() < 0.4 and space > 4:
            color = self.palette.pick("fence", random)
            kind, height = int(random.integers(3)), random.uniform(1.3, 2.0)
            self.put(furniture.fence(random, self.palette, space, kind, height, color), station + space / 2, lateral)
        for _ in range(max(1, int(space / 5))):
            where = station + random.uniform(1.0, max(1.1, space - 1.0))
            plant = furniture.tree(random, self.palette, random.uniform(5.0, 10.0))
            self.put(plant, where, lateral + sign * random.uniform(2.5, 7.0))

    def backdrop(self, side: int, random: Random) -> None:
        """Large houses and trees behind the row, seen through gaps and at the end of side streets."""
        sign, station = (-1, 1)[side], START + 10.0
        for junction in self.street.junctions:
            if junction.arm:
                self._close_arm(junction, side, random)
        while station < LENGTH:
            lateral = self.street.edge(side) + random.uniform(38.0, 55.0)
            if random.random() < 0.6:
                width, height, pitched = random.uniform(14.0, 24.0), random.uniform(8.0, 20.0), random.random() < 0.4
                parts = furniture.house(random, self.palette, width, height, 8.0, pitched)
                self.put(parts, station, sign * lateral, yaw=0.0 if sign > 0 else np.pi)
            else:
                plant = furniture.tree(random, self.palette, random.uniform(9.0, 15.0))
                self.put(plant, station, sign * lateral * 0.7)
            station += random.uniform(18.0, 30.0)

    def _close_arm(self, junction: Junction, side: int, random: Random) -> None:
        """Houses and trees along a side street and across its end."""
        sign, edge, yaw = (-1, 1)[side], self.street.edge(side), (np.pi, 0.0)[side]
        for along in (-16.0, 0.0, 16.0):
            height = random.uniform(7.0, 16.0)
            parts = furniture.house(random, self.palette, 16.0, height, 8.0, random.random() < 0.4)
            self.put(parts, junction.station + along, sign * (edge + random.uniform(50.0, 60.0)), yaw=yaw)
        for out in (30.0, 42.0):
            for beside in (-1, 1):
                plant = furniture.tree(random, self.palette, random.uniform(6.0, 10.0))
                self.put(plant, junction.station + beside * (junction.arm + 3.0), sign * (edge + out))

    def gardens(self, side: int, random: Random) -> None:
        """Hedges and fences on the garden line, bushes and trees behind it."""
        statistics, plan, sign = self.statistics, self.street.sides[side], (-1, 1)[side]
        line = self.street.edge(side) + plan.front + 0.15
        if plan.setback < 1.0:
            self._railings(side, random)
            return
        color, kind = self.palette.pick("fence", random), int(random.integers(3))
        height = random.uniform(1.1, 1.9)
        station = START
        while station < LENGTH - 20.0:
            length, choice = random.uniform(7.0, 15.0), random.random()
            if self.near_junction(station + length / 2, length / 2 + 2.5):
                station += 2.0
                continue
            middle = station + length / 2
            if choice < statistics.fence:
                fence = furniture.fence(random, self.palette, length, kind, height, color)
                self.put(fence, middle, sign * line)
            elif choice < statistics.fence + statistics.hedge * 0.6:
                plant = furniture.hedge(random, self.palette, length, random.uniform(0.8, 1.8))
                self.put(plant, middle, sign * (line + 0.3))
            if plan.setback > 2.0 and random.random() < 0.5:
                lateral = line + random.uniform(1.0, plan.setback - 0.6)
                where = middle + random.uniform(-3.0, 3.0)
                self.put(furniture.bush(random, self.palette, random.uniform(0.5, 1.1)), where, sign * lateral)
            station += length + random.uniform(0.5, 3.0)

    def _railings(self, side: int, random: Random) -> None:
        """Where houses stand at the sidewalk: a railing beside the kerb before some junctions."""
        sign = (-1, 1)[side]
        color = self.palette.pick("fence", random)
        for junction in self.street.junctions:
            if random.random() < self.statistics.fence:
                length, lateral = random.uniform(8.0, 16.0), self.street.edge(side) + KERB + 0.25
                middle = junction.station - junction.arm - 3.5 - length / 2
                parts = furniture.fence(random, self.palette, length, int(random.integers(1, 3)), 1.05, color)
                self.put(parts, middle, sign * lateral)

    def trees(self, side: int, random: Random) -> None:
        """Street trees on the verge or at the kerb."""
        statistics, plan, sign = self.statistics, self.street.sides[side], (-1, 1)[side]
        if random.random() < statistics.treeless:
            return
        spacing, height = random.uniform(*statistics.tree_spacing), random.uniform(*statistics.tree_height)
        lateral = self.street.edge(side) + KERB + (plan.verge / 2 if plan.verge else 0.7)
        if not plan.verge and plan.sidewalk < 2.4:
            lateral = self.street.edge(side) + plan.front + 1.0
            if plan.setback < 2.5:
                return
        station = START + random.uniform(0.0, spacing)
        while station < LENGTH - 30.0:
            if not self.near_junction(station, 4.0, arms_only=False):
                plant = furniture.tree(random, self.palette, height * random.uniform(0.8, 1.2))
                self.put(plant, station, sign * lateral)
            station += spacing * random.uniform(0.75, 1.3)

    def posts(self, side: int, random: Random) -> None:
        """Lamp posts, bare poles and traffic signs along the kerb."""
        statistics, sign = self.statistics, (-1, 1)[side]
        lateral = self.street.edge(side) + KERB + 0.35
        spacing, height = random.uniform(*statistics.pole_spacing), random.uniform(5.5, 9.0)
        arm = -sign * random.uniform(1.2, 2.4) if random.random() < 0.7 else 0.0
        station = START + random.uniform(0.0, spacing)
        while station < LENGTH - 20.0:
            self.put(furniture.lamp_post(random, self.palette, height, arm), station, sign * lateral)
            station += spacing * random.uniform(0.85, 1.15)
        station = random.uniform(4.0, 14.0)
        while station < LENGTH - 60.0:
            kind = int(random.choice(6, p=[0.26, 0.16, 0.12, 0.08, 0.23, 0.15]))
            # signs on the left mostly serve the oncoming traffic and show their backs
            facing = random.normal(0.0, 0.12) + (np.pi if side == 0 and random.random() < 0.4 else 0.0)
            offset = 1.0 if kind == 5 else 0.1
            if not self.near_junction(station, 0.5):
                self.put(furniture.sign_post(random, self.palette, kind, facing), station, sign * (lateral + offset))
            station += random.uniform(*statistics.sign_spacing)

    def signals(self, random: Random) -> None:
        """Traffic lights on both sides of junctions."""
        for junction in self.street.junctions:
            if not junction.signals:
                continue
            state = int(random.integers(3))
            overhang = random.random() < 0.3
            for side, sign in ((0, -1), (1, 1)):
                lateral = self.street.edge(side) + KERB + 0.4
                arm = -sign * (lateral - 0.5 * self.street.lane_width) if overhang and side == 1 else 0.0
                station = junction.station - junction.arm - 3.6
                if side == 0 and random.random() < 0.3:
                    continue
                self.put(furniture.traffic_light(random, self.palette, arm, state), station, sign * lateral)

    def end(self, random: Random) -> None:
        """The street runs out between trees and houses, so that no bare horizon shows."""
        for lateral in np.arange(-60.0, 61.0, 9.0):
            station = LENGTH + random.uniform(-6.0, 12.0)
            if random.random() < 0.55:
                self.put(furniture.tree(random, self.palette, random.uniform(9.0, 16.0)), station, float(lateral))
            else:
                height, pitched = random.uniform(8.0, 22.0), random.random() < 0.4
                house = furniture.house(random, self.palette, 12.0, height, 10.0, pitched)
                self.put(house, station, float(lateral), yaw=-np.pi / 2)
