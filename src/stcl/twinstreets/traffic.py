"""Who is on the street: parked and moving cars, pedestrians, riders."""

import numpy as np

from stcl.twinstreets import movers
from stcl.twinstreets.site import Site
from stcl.twinstreets.street import KERB, LENGTH, START

Random = np.random.Generator


class Traffic(Site):
    """Peoples a street, one purpose a method, each with random numbers of its own."""

    def parked_cars(self, side: int, random: Random) -> None:
        """Cars in the parking lane, facing with the traffic of their side."""
        plan, sign = self.street.sides[side], (-1, 1)[side]
        if not plan.parking:
            return
        share, station = random.uniform(*self.statistics.parked), START
        lateral = sign * (self.street.edge(side) - plan.parking / 2)
        while station < LENGTH - 60.0:
            if random.random() < share and not self.near_junction(station, 6.0, arms_only=False):
                yaw = random.normal(0.0, 0.03) + (np.pi if side == 0 else 0.0)
                self.put(movers.car(random, self.palette), station, lateral + random.normal(0.0, 0.08), yaw=yaw)
            station += random.uniform(5.6, 6.6)

    def walkers(self, side: int, random: Random) -> None:
        """Pedestrians on the sidewalk, alone or in pairs."""
        plan, sign = self.street.sides[side], (-1, 1)[side]
        inner = self.street.edge(side) + KERB + plan.verge + (0.9 if not plan.verge else 0.3)
        outer = max(inner + 0.2, self.street.edge(side) + plan.front - 0.4)
        spacing, station = random.uniform(*self.statistics.people_spacing), random.uniform(3.0, 10.0)
        while station < 90.0:
            pace = 0.0 if random.random() < 0.2 else random.uniform(0.9, 1.7) * random.choice([-1, 1])
            yaw = random.uniform(-3.0, 3.0) if pace == 0 else (0.0 if pace > 0 else np.pi)
            lateral = sign * random.uniform(inner, outer)
            self.put(movers.person(random, self.palette, pace), station, lateral, yaw=yaw, speed=pace)
            if random.random() < 0.25:  # a companion
                second = movers.person(random, self.palette, pace)
                self.put(second, station + random.normal(0.0, 0.2), lateral + 0.6, yaw=yaw, speed=pace)
            station += spacing * random.exponential(0.8) + 1.0

    def crossers(self, side: int, random: Random) -> None:
        """Pedestrians on the zebras, walking away from `side`."""
        sign, inner = (-1, 1)[side], self.street.edge(side) + 1.2
        for junction in self.street.junctions:
            for _ in range(int(random.integers(0, 3))):
                pace = -sign * random.uniform(0.8, 1.5)
                lateral, before = sign * random.uniform(2.0, inner), junction.arm + random.uniform(1.2, 3.0)
                walker, yaw = movers.person(random, self.palette, pace), np.pi / 2 * np.sign(pace)
                self.put(walker, junction.station - before, lateral, yaw=yaw, cross_speed=pace)

    def riders(self, side: int, random: Random) -> None:
        """Riders at the edge of the road."""
        sign = (-1, 1)[side]
        for _ in range(int(random.poisson(self.statistics.rider))):
            pace = random.uniform(3.0, 6.0) * (1 if side == 1 else -1)
            lateral = sign * (self.street.lanes * self.street.lane_width - random.uniform(0.2, 0.45))
            yaw = 0.0 if pace > 0 else np.pi
            place = random.uniform(9.0, 26.0) if pace > 0 else random.uniform(14.0, 34.0)
            self.put(movers.rider(random, self.palette, pace), place, lateral, yaw=yaw, speed=pace)

    def moving_cars(self, side: int, random: Random, ego_speed: float) -> None:
        """Moving cars: on the right in step with the ego car, on the left oncoming."""
        sign = (-1, 1)[side]
        for lane in range(self.street.lanes):
            # one speed a lane, so that cars never run into each other or into the camera
            speed = ego_speed * random.uniform(0.95, 1.1) if side == 1 else -random.uniform(4.0, 12.0)
            if side == 1 and lane != self.street.lanes - 1:
                speed = max(2.0, ego_speed * random.uniform(0.7, 1.3))
            station = random.uniform(11.0, 30.0) if side == 1 else random.uniform(8.0, 40.0)
            while station < LENGTH - 80.0:
                lateral = sign * (lane + 0.5) * self.street.lane_width + random.normal(0.0, 0.15)
                yaw = 0.0 if side == 1 else np.pi
                self.put(movers.car(random, self.palette), station, lateral, yaw=yaw, speed=speed)
                station += random.uniform(*self.statistics.traffic_spacing) + 4.0
