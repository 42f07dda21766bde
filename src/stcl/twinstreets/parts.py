"""The solid parts that a street is made of: what they are while it is built, and as arrays once it is built."""

from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from stcl.labels import get_space

SPACE_NAME = "synthia_seq-cityscapes_seq"
SKY, ROAD, SIDEWALK, GRASS = 0, 1, 2, 3  # part numbers of the surfaces that are not solids
FIRST_SOLID = 4
_ZONE_CLASSES = ("road", "sidewalk", "vegetation")  # of the three zones of the ground

Vector = tuple[float, float, float]


class Shape(IntEnum):
    """Unit solids; a part scales, turns and places one of them."""

    BOX = 0
    TAPER = 1  # a box whose top is narrower: car cabins, roofs
    BALL = 2
    TUBE = 3  # upright, without lids
    PANEL = 4  # a box cut to a disc, diamond, octagon or triangle across its z axis: traffic signs
    PICKET = 5  # a box with upright gaps: fences
    CROWN = 6  # a ball with a ragged outline: foliage


class Material(IntEnum):
    """How a surface is painted."""

    SKY = 0
    GROUND = 1
    PLAIN = 2
    FACADE = 3
    ROOF = 4
    FOLIAGE = 5
    CAR_BODY = 6
    CAR_CABIN = 7
    WHEEL = 8
    SIGN = 9
    LIGHT = 10
    FENCE = 11
    HEAD = 12
    BARK = 13


def class_id(name: str) -> int:
    """Train id of a class name in the twelve-class space."""
    return get_space(SPACE_NAME).index(name)


@dataclass(frozen=True)
class Track:
    """Where an object is: metres along the street and sideways, and how both change (m/s); yaw in radians."""

    station: float
    lateral: float
    yaw: float = 0.0
    speed: float = 0.0
    cross_speed: float = 0.0


@dataclass(frozen=True)
class Part:
    """One solid in the axes of its object (x right, y up, z forward; metres, radians)."""

    shape: Shape
    material: Material
    label: int
    centre: Vector
    half: Vector
    color: Vector
    second: Vector = (0.0, 0.0, 0.0)
    detail: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # meaning belongs to shape and material
    taper: tuple[float, float] = (0.0, 0.0)  # share of the x and z extent lost at the top
    turn: Vector = (0.0, 0.0, 0.0)  # yaw, pitch, roll within the object
    swing: Vector = (0.0, 0.0, 0.0)  # amplitude (rad), rate (rad/s), phase of a rotation about x
    pivot: Vector = (0.0, 0.0, 0.0)  # what it swings about
    seed: int = 0


@dataclass
class PartList:
    """Collects objects while a street is built."""

    tracks: list[Track] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)

    def add(self, track: Track, parts: list[Part]) -> None:
        """Places one object made of `parts` on `track`."""
        self.tracks.append(track)
        self.parts.extend(parts)
        self.owner.extend([len(self.tracks) - 1] * len(parts))


def rotation_y(angle: np.ndarray) -> np.ndarray:
    """(..., 3, 3) turn to the right by `angle`: forward becomes (sin, 0, cos)."""
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([c, zero, s, zero, one, zero, -s, zero, c], -1).reshape(*angle.shape, 3, 3)


def rotation_x(angle: np.ndarray) -> np.ndarray:
    """(..., 3, 3) tilt upwards by `angle`: forward becomes (0, sin, cos)."""
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([one, zero, zero, zero, c, s, zero, -s, c], -1).reshape(*angle.shape, 3, 3)


def rotation_z(angle: np.ndarray) -> np.ndarray:
    """(..., 3, 3) lean by `angle`."""
    c, s, zero, one = np.cos(angle), np.sin(angle), np.zeros_like(angle), np.ones_like(angle)
    return np.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).reshape(*angle.shape, 3, 3)


class PartTable:
    """The finished street as arrays over parts; sky and ground lead so that a part number is a row."""

    def __init__(self, street_parts: PartList) -> None:
        blank = Part(Shape.BOX, Material.SKY, class_id("sky"), (0, 0, 0), (1, 1, 1), (0, 0, 0))
        zones = [replace(blank, material=Material.GROUND, label=class_id(name)) for name in _ZONE_CLASSES]
        rows = [blank, *zones, *street_parts.parts]
        tracks = [Track(0.0, 0.0), *street_parts.tracks]
        owner = np.array([0] * FIRST_SOLID + [index + 1 for index in street_parts.owner])

        def column(name: str, kind: type = np.float64) -> np.ndarray:
            return np.array([getattr(row, name) for row in rows], kind)

        def track(name: str) -> np.ndarray:
            return np.array([getattr(row, name) for row in tracks], np.float64)[owner]

        self.shape, self.material = column("shape", np.uint8), column("material", np.uint8)
        self.label, self.seed = column("label", np.uint8), column("seed", np.int32)
        self.centre, self.half, self.pivot = column("centre"), column("half"), column("pivot")
        self.taper, self.swing = column("taper"), column("swing")
        self.color = np.ascontiguousarray(column("color", np.float32).T)  # (3, P)
        self.second = np.ascontiguousarray(column("second", np.float32).T)
        self.detail = np.ascontiguousarray(column("detail", np.float32).T)  # (4, P)
        turn = column("turn")
        self.turn = rotation_y(turn[:, 0]) @ rotation_x(turn[:, 1]) @ rotation_z(turn[:, 2])
        self.station, self.lateral, self.yaw = track("station"), track("lateral"), track("yaw")
        self.speed, self.cross_speed = track("speed"), track("cross_speed")
        self.moving = (self.speed != 0) | (self.cross_speed != 0) | (self.swing[:, 0] != 0)

    def __len__(self) -> int:
        return len(self.shape)
