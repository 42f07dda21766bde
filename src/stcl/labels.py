"""What the classes are: names, colours, and how a data set's raw ids become train ids.

A data set declares ``raw id -> class name``; a :class:`LabelSpace` builds the look-up table from it by NAME. No id
table and no palette is written twice. Sources: the Cityscapes label definition, the SYNTHIA and VIPER documentation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stcl.errors import SettingError, lookup, unknown_name

IGNORE = 255
"""Train id of pixels that neither train nor count."""

PALETTE: dict[str, tuple[int, int, int]] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "light": (250, 170, 30),
    "sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
"""The Cityscapes colours (RGB) by class name."""


VOID = "void"
"""Name of raw ids that exist but belong to no class: known, and ignored everywhere."""


def _ids(text: str) -> dict[int, str]:
    """``"0 void, 1 sky"`` -> ``{0: "void", 1: "sky"}``."""
    pairs = (entry.split() for entry in text.split(","))
    return {int(raw): name for raw, name in pairs}


_CITYSCAPES = (
    "road sidewalk building wall fence pole light sign vegetation terrain sky person rider car truck bus train "
    "motorcycle bicycle"
)  # in the order of the published train ids

# Cityscapes labelIds: the void ones are, in order, unlabeled, ego vehicle, rectification border, out of region, static,
# dynamic, ground, parking, rail track, guard rail, bridge, tunnel, pole group, caravan and trailer.
_CITYSCAPES_IDS = _ids(
    "0 void, 1 void, 2 void, 3 void, 4 void, 5 void, 6 void, 7 road, 8 sidewalk, 9 void, 10 void, 11 building,"
    "12 wall, 13 fence, 14 void, 15 void, 16 void, 17 pole, 18 void, 19 light, 20 sign, 21 vegetation, 22 terrain,"
    "23 sky, 24 person, 25 rider, 26 car, 27 truck, 28 bus, 29 void, 30 void, 31 train, 32 motorcycle, 33 bicycle"
)

RAW_IDS: dict[str, dict[int, str]] = {
    # SYNTHIA-Seq: 12 is lane marking, 13 and 14 are reserved; its bicycles are what Cityscapes calls riders.
    "synthia_seq": _ids(
        "0 void, 1 sky, 2 building, 3 road, 4 sidewalk, 5 fence, 6 vegetation, 7 pole, 8 car, 9 sign, 10 person,"
        "11 rider, 12 void, 13 void, 14 void, 15 light"
    ),
    # VIPER: both tree (7) and vegetation (8) are vegetation; the void ones are, in order, unlabeled, ambiguous,
    # railtrack, infrastructure, billboard, mobilebarrier, firehydrant, chair, trash, trashcan, animal, van, trailer,
    # plane and boat.
    "viper": _ids(
        "0 void, 1 void, 2 sky, 3 road, 4 sidewalk, 5 void, 6 terrain, 7 vegetation, 8 vegetation, 9 building, 10 void,"
        "11 fence, 12 void, 13 light, 14 sign, 15 void, 16 void, 17 void, 18 void, 19 void, 20 person, 21 void,"
        "22 bicycle, 23 motorcycle, 24 car, 25 void, 26 bus, 27 truck, 28 void, 29 train, 30 void, 31 void"
    ),
    "cityscapes_seq": _CITYSCAPES_IDS,
    "cityscapes": _CITYSCAPES_IDS,
    "gta5": _CITYSCAPES_IDS | {34: VOID},  # 34 is license plate
    # SYNTHIA-RAND-CITYSCAPES: not the ids of SYNTHIA-Seq, and here riders are apart from their bicycles. The void ones
    # are, in order, void, parking slot, road work and lane marking.
    "synthia_rand": _ids(
        "0 void, 1 sky, 2 building, 3 road, 4 sidewalk, 5 fence, 6 vegetation, 7 pole, 8 car, 9 sign, 10 person,"
        "11 bicycle, 12 motorcycle, 13 void, 14 void, 15 light, 16 terrain, 17 rider, 18 truck, 19 bus, 20 train,"
        "21 wall, 22 void"
    ),
    # BDD100K labels are stored as Cityscapes train ids.
    "bdd": dict(enumerate(_CITYSCAPES.split())) | {IGNORE: VOID},
    # CamVid in its 11 class form, train and test alike; its bicyclists are riders.
    "camvid": _ids(
        "0 sky, 1 building, 2 pole, 3 road, 4 sidewalk, 5 vegetation, 6 sign, 7 fence, 8 car, 9 person, 10 rider,"
        "11 void"
    ),
}
"""``raw id -> class name`` of every data set, by the data set's name. An id that is not here is an error in a file."""


@dataclass(frozen=True)
class LabelSpace:
    """The classes that a network is trained on, in train-id order.

    Args:
        name: name of the space, and of the protocol that measures by it (:mod:`stcl.protocols`).
        names: class names; the position is the train id.
        unreported: classes that are trained but left out of the reported mean.
        merges: ``foreign class name -> class name of this space`` (rider -> person), part of the space's identity.
    """

    name: str
    names: tuple[str, ...]
    unreported: tuple[str, ...] = ()
    merges: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Train id of a class; an unknown name lists the right ones."""
        if name not in self.names:
            raise SettingError(unknown_name(f"class of label space '{self.name}'", name, self.names))
        return self.names.index(name)

    @property
    def reported(self) -> tuple[int, ...]:
        """Train ids that enter the reported mean."""
        return tuple(i for i, name in enumerate(self.names) if name not in self.unreported)

    @property
    def palette(self) -> NDArray[np.uint8]:
        """Colours ``(256, 3)`` uint8 RGB, indexed by train id; ignore is black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = [PALETTE[name] for name in self.names]
        return table

    def lookup_table(self, raw_names: Mapping[int, str]) -> NDArray[np.uint8]:
        """Table ``(65536,)`` uint8 from raw id to train id for a data set that declares ``raw id -> class name``.

        Classes that this space does not hold (after merges) become :data:`IGNORE`.
        """
        table = np.full(65536, IGNORE, np.uint8)
        for raw, name in raw_names.items():
            name = self.merges.get(name, name)
            if name in self.names:
                table[raw] = self.names.index(name)
        return table


_SYNTHIA_SEQ = "road sidewalk building fence pole light sign vegetation sky person rider car"
_SYNTHIA_RAND = (
    "road sidewalk building wall fence pole light sign vegetation sky person rider car bus motorcycle bicycle"
)
_VIPER = "road sidewalk building fence light sign vegetation terrain sky person car truck bus motorcycle bicycle"
_NOT_IN_VIPER = ("wall", "pole", "rider", "train")
"""Classes that UnifiedVideoDA leaves out where VIPER is the source; its few trains are trained."""

SPACES: dict[str, LabelSpace] = {
    space.name: space
    for space in (
        LabelSpace("synthia_seq-cityscapes_seq", tuple(_SYNTHIA_SEQ.split()), unreported=("fence",)),
        LabelSpace("viper-cityscapes_seq", tuple(_VIPER.split()), merges={"rider": "person"}),
        LabelSpace("viper-cityscapes_seq-uvda", tuple(_CITYSCAPES.split()), unreported=_NOT_IN_VIPER),
        LabelSpace("viper-bdd", tuple(_CITYSCAPES.split()), unreported=_NOT_IN_VIPER),
        LabelSpace("cityscapes", tuple(_CITYSCAPES.split())),
        LabelSpace("gta5-cityscapes", tuple(_CITYSCAPES.split())),
        LabelSpace("synthia_rand-cityscapes", tuple(_SYNTHIA_RAND.split())),
        # CamVid has no class for traffic lights apart from signs, so both are one class here.
        LabelSpace(
            "twinstreets-camvid",
            ("road", "sidewalk", "building", "fence", "pole", "sign", "vegetation", "sky", "person", "rider", "car"),
            merges={"light": "sign"},
        ),
    )
}
"""Every label space by name."""


def get_space(name: str) -> LabelSpace:
    """The label space called ``name``; an unknown name lists the right ones."""
    return lookup(SPACES, name, "label space")


def raw_ids_of(dataset: str, space: LabelSpace) -> NDArray[np.uint16]:
    """The other direction, for writing a data set's layout: table ``(256,)`` from train id to the lowest raw id.

    Classes that the data set does not have become its void id; a class that the benchmark of the data set merges
    into another one (rider into person in VIPER) takes that one's id.
    """
    names = lookup(RAW_IDS, dataset, "data set")
    first = {name: raw for raw, name in sorted(names.items(), reverse=True)}
    merges: dict[str, str] = {}
    for other in SPACES.values():
        if other.name.startswith(f"{dataset}-"):
            merges.update(other.merges)
    table = np.full(256, first[VOID], np.uint16)
    for train_id, name in enumerate(space.names):
        table[train_id] = first.get(name, first.get(merges.get(name, ""), first[VOID]))
    return table
