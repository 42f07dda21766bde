"""The contract of a head: feature maps of one stage, or of all, to class scores.

A new head is a subclass of :class:`Head` and one line in ``stcl.models.HEADS``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import nn

from stcl.errors import SettingError

Reads = Literal["last", "all"]
"""Which stages of the backbone a head is given: the last one, or every one in order."""


@dataclass(frozen=True)
class HeadSettings:
    """Size of a head; the defaults are the published ones for a ResNet at stride 8.

    Args:
        dilations: one 3x3 convolution each, in cells of the feature map.
        width: hidden channels of every head but TPS.
        dropout: probability with which a head with hidden channels drops one of them.
        initial_std: standard deviation of the initial weights of the TPS and the STCL head; None scales it to the
            fan-in (training from scratch). The other heads start as they were published.
        upsample: the MLP head refines its scores on a grid that is so many times finer.
    """

    dilations: tuple[int, ...] = (6, 12, 18, 24)
    width: int = 256
    dropout: float = 0.1
    initial_std: float | None = 0.01
    upsample: int = 1

    def __post_init__(self) -> None:
        if not self.dilations or min(self.dilations) < 1:
            raise SettingError(f"A head's dilations are whole numbers from 1 on, not {list(self.dilations)}.")
        if self.width < 1 or self.upsample < 1:
            raise SettingError(f"A head's width and upsample are at least 1, not {self.width} and {self.upsample}.")
        if not 0 <= self.dropout < 1:
            raise SettingError(f"A head's dropout is a probability below 1, not {self.dropout}.")


class Head(nn.Module):
    """``head(*maps)`` gives class scores ``(B, C, h, w)`` on the grid of the first map, or on a finer one.

    Attributes:
        reads: which stages' maps ``(B, channels, h', w')`` it is called with.
        settings: names of the :class:`HeadSettings` that it looks at.
    """

    reads: ClassVar[Reads] = "last"
    settings: ClassVar[tuple[str, ...]] = ()


class HeadBuilder(Protocol):
    """How a kind of head is made."""

    @property
    def reads(self) -> Reads:
        """See :class:`Head`."""
        ...

    @property
    def settings(self) -> tuple[str, ...]:
        """See :class:`Head`."""
        ...

    def __call__(self, channels: Any, classes: int, settings: HeadSettings) -> Head:
        """A head for ``channels`` of the last stage; for a head that reads all, a tuple with the number of each."""
        ...
