"""What is known of a network from other people's code, once its checkpoint has been read."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class PublishedNetwork:
    """A network of other people's code, in this package's names.

    Args:
        title: what it is, for people.
        backbone: name of ``stcl.models.BACKBONES``.
        tensors: state of a segmenter; ``backbone.*`` alone where there is no head. Names that have no place here keep
            their own, so that a comparison with the network finds them.
        head: name of ``stcl.models.HEADS``, or None: the file has no head that is known here.
        classes: how many the head has, or None without a head.
        auxiliary, fusion: as of :func:`stcl.models.build_segmenter`.
        backbone_settings: arguments of the backbone.
        left_out: names in the file that nobody needs here, e.g. of a classifier of ImageNet.
    """

    title: str
    backbone: str
    tensors: dict[str, Tensor]
    head: str | None = None
    classes: int | None = None
    auxiliary: bool = False
    fusion: str = "none"
    backbone_settings: dict[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
