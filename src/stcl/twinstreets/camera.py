"""The ego camera: a pinhole that rides along the street with small sways.

Camera axes: x right, y up, z forward. Pixel (row y, column x) looks along ((x - cx) / f, (cy - y) / f, 1), so the ray
parameter of a hit is its depth along the optical axis in metres. Pixel centres have whole coordinates.
"""

from dataclasses import dataclass

import numpy as np

from stcl.twinstreets.parts import rotation_x, rotation_y
from stcl.twinstreets.street import Street
from stcl.twinstreets.styles import Optics

FRAME_RATE = 17.0  # frames a second, as Cityscapes
TOP_SPEED = 12.0  # m/s


@dataclass(frozen=True)
class Lens:
    """Intrinsics in pixels; they scale with the image width."""

    width: int
    height: int
    focal: float

    @property
    def center(self) -> tuple[float, float]:
        """Principal point (cx, cy)."""
        return (self.width - 1) / 2, (self.height - 1) / 2

    def rays(self) -> tuple[np.ndarray, np.ndarray]:
        """Ray slopes: (W,) to the right and (H,) upwards, float32."""
        cx, cy = self.center
        right = (np.arange(self.width) - cx) / self.focal
        up = (cy - np.arange(self.height)) / self.focal
        return right.astype(np.float32), up.astype(np.float32)


@dataclass(frozen=True)
class Pose:
    """Camera to world: `rotation` (3, 3), columns right, up, forward; `position` (3,) in metres."""

    rotation: np.ndarray
    position: np.ndarray


@dataclass(frozen=True)
class EgoPath:
    """Where the camera is at any time; all motion is in closed form so that any frame stands on its own."""

    street: Street
    speed: float  # m/s
    lateral: float  # metres right of the centre line
    height: float
    pitch: float  # radians
    yaw: float
    sway: tuple[float, float, float]  # amplitudes: speed share, pitch, yaw
    rates: tuple[float, float, float]  # rad/s
    phases: tuple[float, float, float]

    @staticmethod
    def draw(optics: Optics, street: Street, random: np.random.Generator) -> "EgoPath":
        """A random drive in the outermost lane of the right side."""
        speed = 0.0 if random.random() < 0.1 else random.uniform(3.0, TOP_SPEED / 1.2)
        lateral = (street.lanes - 0.5) * street.lane_width + random.normal(0.0, 0.2)
        degrees = np.pi / 180.0
        sways = random.uniform(0.3, 1.0, 2) * (optics.pitch_sway, optics.yaw_sway) * degrees
        rates, phases = random.uniform((0.5, 2.0, 0.6), (1.5, 6.0, 2.0)), random.uniform(0.0, 2 * np.pi, 3)
        return EgoPath(
            street, speed, lateral,
            height=optics.height * random.uniform(0.95, 1.05),
            pitch=(optics.pitch + random.normal(0.0, 0.4)) * degrees,
            yaw=random.normal(0.0, 1.0) * degrees,
            sway=(random.uniform(0.0, 0.2), float(sways[0]), float(sways[1])),
            rates=tuple(rates.tolist()), phases=tuple(phases.tolist()),
        )  # fmt: skip

    def pose(self, time: float) -> Pose:
        """Pose `time` seconds after frame 0."""
        waves = [amplitude * np.sin(rate * time + phase) for amplitude, rate, phase in
                 zip(self.sway, self.rates, self.phases, strict=True)]  # fmt: skip
        station = self.speed * (time + (waves[0] - self.sway[0] * np.sin(self.phases[0])) / self.rates[0])
        x, z, heading = self.street.place(np.asarray(station), np.asarray(self.lateral))
        rotation = rotation_y(heading + self.yaw + waves[2]) @ rotation_x(np.asarray(self.pitch + waves[1]))
        return Pose(rotation, np.array([x, self.height, z]))
