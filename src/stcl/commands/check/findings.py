"""Mistakes and oddities of data as plain data: each once, with its number, its places and what to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stcl.commands.check.survey import Size
from stcl.types import FrameRef

Severity = Literal["problem", "evaluation", "remark"]
"""``problem``: training cannot start or will stop; ``evaluation``: training can, `stcl evaluate` cannot."""


@dataclass(frozen=True)
class Finding:
    """One kind of mistake or oddity in one domain.

    Attributes:
        domain: ``source``, ``target``, ``evaluation`` or ``settings``.
        kind: a word for programs, e.g. ``unknown_id``.
        severity: see :data:`Severity`.
        what: a sentence or two.
        advice: what to do next.
        count: how many files, frames or clips it holds for.
        places: their paths, in order.
    """

    domain: str
    kind: str
    severity: Severity
    what: str
    advice: str
    count: int = 1
    places: tuple[str, ...] = ()


@dataclass
class Notes:
    """Findings of one domain as they come.

    Attributes:
        domain: see :class:`Finding`.
        fatal: severity of what would stop whoever uses the domain.
    """

    domain: str
    fatal: Severity
    found: list[Finding] = field(default_factory=list)

    def stop(self, kind: str, what: str, advice: str, places: Sequence[object] = (), count: int | None = None) -> None:
        """Note what stops training, or evaluation."""
        self._add(kind, self.fatal, what, advice, places, count)

    def remark(
        self, kind: str, what: str, advice: str, places: Sequence[object] = (), count: int | None = None
    ) -> None:
        """Note what is odd, unless it holds for ``count`` 0."""
        self._add(kind, "remark", what, advice, places, count)

    def _add(
        self, kind: str, severity: Severity, what: str, advice: str, places: Sequence[object], count: int | None
    ) -> None:
        if count == 0:
            return
        number = len(places) or 1 if count is None else count
        self.found.append(Finding(self.domain, kind, severity, what, advice, number, tuple(map(str, places))))


def place(ref: FrameRef) -> str:
    """Where a frame lies."""
    return str(ref.image) if ref.frame is None else f"{ref.image}, frame {ref.frame}"


def many(count: int, noun: str) -> str:
    """``1 frame``, ``2 frames``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size_text(size: Size | None) -> str:
    """``1280x760``."""
    return "–" if size is None else f"{size[0]}x{size[1]}"


def sizes_text(sizes: Mapping[Size, Sequence[object]]) -> str:
    """``1280x760 (99), 640x480 (1)``, the most frequent first."""
    order = sorted(sizes, key=lambda size: -len(sizes[size]))
    return ", ".join(f"{size_text(size)} ({len(sizes[size])})" for size in order)
