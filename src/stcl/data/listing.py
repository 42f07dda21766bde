"""The files of a split by sequence and frame number, with all mistakes among them."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stcl.types import FrameRef

Key = tuple[str, int]
"""Sequence and frame number: what ties a label file to its frame."""


@dataclass
class Listing:
    """What lies on disk for a split, mistakes included. The data set's index refuses them one by one.

    Attributes:
        frames: by sequence and number.
        labels: label files, likewise; None where labels are out of bounds.
        strays: files whose names break the layout.
        twins: further files for a frame or a label that has one already.
    """

    frames: dict[Key, FrameRef] = field(default_factory=dict)
    labels: dict[Key, Path] | None = None
    strays: list[Path] = field(default_factory=list)
    twins: list[tuple[Key, Path]] = field(default_factory=list)

    @property
    def orphans(self) -> list[Key]:
        """Labels without a frame."""
        return sorted((self.labels or {}).keys() - self.frames.keys())

    @property
    def bare(self) -> list[Key]:
        """Frames without a label, where labels were looked for."""
        return [] if self.labels is None else sorted(self.frames.keys() - self.labels.keys())

    def index(self) -> list[FrameRef]:
        """Frames by sequence and number, each with its label where it has one."""
        labels = self.labels or {}
        return [replace(self.frames[key], label=labels.get(key)) for key in sorted(self.frames)]

    def insert(self, table: dict[Key, Any], key: Key, value: Any, path: Path) -> None:
        """Enter a file into ``frames`` or ``labels``, or among the twins."""
        if key in table:
            self.twins.append((key, path))
        else:
            table[key] = value
