"""What a number in a result means: protocols by name and version.

A protocol is named after its label space, which holds the classes, which of them are in the mean, and the merges; this
module adds the rest. It is written into every result, and results of different protocols are never put side by side.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stcl.labels import SPACES, LabelSpace

AVERAGING = "macro mean of IoU over reported classes from one confusion matrix; absent classes left out"
RESOLUTION = "scores up-sampled bilinearly to the label's size before the arg-max"
SELECTION = "last EMA weights"
"""Which weights are measured: never chosen by a score on target labels."""


@dataclass(frozen=True)
class Protocol:
    """A benchmark: its data, its classes and how it is measured.

    Args:
        space: classes in train-id order, those in the mean, and merges.
        source, target: data sets of the published benchmark; empty where there is none.
        ignored: classes that do not take part: a pixel whose label or prediction is one of them does not count.
        means: further means to report, ``title -> class names``.
        version: rises with every change of what is measured.
        averaging, resolution, selection: in words: of IoU, of the scored prediction, and which weights are measured.
    """

    space: LabelSpace
    source: str = ""
    target: str = ""
    ignored: tuple[str, ...] = ()
    means: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    version: int = 1
    averaging: str = AVERAGING
    resolution: str = RESOLUTION
    selection: str = SELECTION

    @property
    def name(self) -> str:
        """That of the label space."""
        return self.space.name

    def ids(self, classes: tuple[str, ...]) -> list[int]:
        """Train ids of classes."""
        return [self.space.index(name) for name in classes]

    def describe(self) -> dict[str, Any]:
        """The protocol as plain data, as results carry it."""
        return {
            "name": self.name,
            "version": self.version,
            "source": self.source or None,
            "target": self.target or None,
            "classes": list(self.space.names),
            "reported": list(self.space.reported),
            "merges": dict(self.space.merges),
            "ignored": list(self.ignored),
            "means": {title: self.ids(classes) for title, classes in self.means.items()},
            "averaging": self.averaging,
            "resolution": self.resolution,
            "selection": self.selection,
        }


_VIPER_UVDA, _VIPER_BDD = SPACES["viper-cityscapes_seq-uvda"], SPACES["viper-bdd"]
_SYNTHIA_RAND = SPACES["synthia_rand-cityscapes"]

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(SPACES["synthia_seq-cityscapes_seq"], "synthia_seq", "cityscapes_seq"),
        Protocol(SPACES["viper-cityscapes_seq"], "viper", "cityscapes_seq"),  # TPS: rider counts as person
        # UnifiedVideoDA (Kareer et al. 2024, arXiv 2402.00868) leaves out predictions of the ignored classes, too.
        Protocol(_VIPER_UVDA, "viper", "cityscapes_seq", ignored=_VIPER_UVDA.unreported),
        Protocol(_VIPER_BDD, "viper", "bdd", ignored=_VIPER_BDD.unreported),
        Protocol(SPACES["cityscapes"]),
        Protocol(SPACES["gta5-cityscapes"], "gta5", "cityscapes"),
        Protocol(
            _SYNTHIA_RAND,
            "synthia_rand",
            "cityscapes",
            means={"mIoU of 13": tuple(name for name in _SYNTHIA_RAND.names if name not in ("wall", "fence", "pole"))},
        ),
        Protocol(SPACES["twinstreets-camvid"], "synthia_seq", "camvid"),  # TwinStreets in the layout of SYNTHIA-Seq
    )
}
"""Every protocol by name; each label space has one."""


def protocol_of(space: LabelSpace) -> Protocol:
    """The protocol that measures by a label space; a space of your own has a plain one."""
    known = PROTOCOLS.get(space.name)
    return known if known is not None and known.space == space else Protocol(space)
