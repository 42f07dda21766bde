"""A clip: frames of one random street in one style, each rendered on its own."""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from stcl.errors import SettingError
from stcl.twinstreets.camera import Lens
from stcl.twinstreets.render import Painter
from stcl.twinstreets.reprojection import occlusion, reproject
from stcl.twinstreets.styles import Style
from stcl.twinstreets.tracing import Geometry, Tracer
from stcl.twinstreets.world import World

LONGEST = 120  # frames; a faster car would leave the furnished street after about so many
SMALLEST, LARGEST = 32, 4096  # pixels
_CACHED = 3  # traced frames kept, enough for t, t-1 and t-2


@dataclass(frozen=True)
class RenderedFrame:
    """One frame.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) uint8 train ids of the twelve-class space.
        depth: (H, W) float32 metres along the optical axis, inf for sky.
    """

    image: np.ndarray
    label: np.ndarray
    depth: np.ndarray


class StreetClip:
    """Random access to the frames of one clip.

    A frame depends on (version, style, style seed, clip seed, size, index) alone, bit by bit.

    Args:
        style: from :func:`get_style`.
        seed: which street, 0 or more.
        size: (width, height) in pixels.
        frames: how many frames the clip has; more frames leave the earlier ones unchanged.
    """

    def __init__(self, style: Style, seed: int, size: tuple[int, int], frames: int = 30) -> None:
        if len(size) != 2 or any(int(side) != side or not SMALLEST <= side <= LARGEST for side in size):
            raise SettingError(f"size is (width, height), whole numbers of {SMALLEST} to {LARGEST} px, found {size}")
        if int(frames) != frames or not 1 <= frames <= LONGEST:
            raise SettingError(f"a clip has 1 to {LONGEST} frames, found {frames}; use further clip seeds for more")
        self.style, self.seed, self.size, self.frames = style, seed, (int(size[0]), int(size[1])), int(frames)
        self.world = World(style, seed)
        self.lens = Lens(*self.size, focal=style.optics.focal * self.size[0])
        self._tracer = Tracer(self.world, self.lens)
        self._painter = Painter(style, seed, self._tracer)
        self._traced: OrderedDict[int, Geometry] = OrderedDict()

    def __len__(self) -> int:
        return self.frames

    def geometry(self, index: int) -> Geometry:
        """What the rays of frame `index` hit."""
        if int(index) != index or not 0 <= index < self.frames:
            raise SettingError(f"this clip has frames 0 to {self.frames - 1}, asked for {index}")
        index = int(index)
        if index not in self._traced:
            self._traced[index] = self._tracer.trace(index)
            if len(self._traced) > _CACHED:
                self._traced.popitem(last=False)
        self._traced.move_to_end(index)
        return self._traced[index]

    def render(self, index: int) -> RenderedFrame:
        """Image, labels and depth of frame `index`."""
        geometry = self.geometry(index)
        image, label = self._painter.paint(geometry, int(index))
        return RenderedFrame(image, label, geometry.depth.copy())

    def labels(self, index: int) -> np.ndarray:
        """Train ids (H, W) uint8 of frame `index` alone, without the cost of the image."""
        return self.world.table.label[self.geometry(index).part]

    def flow(self, current: int, other: int) -> tuple[np.ndarray, np.ndarray]:
        """Exact flow (2, H, W) float32 in pixels from `current` to `other`, and where it is occluded (H, W) bool.

        ``frame_current[y, x] ~ frame_other[y + v, x + u]``. Occluded pixels show what is hidden in, or outside of,
        the other frame; their flow still points to where it would be.
        """
        here, there = self.geometry(current), self.geometry(other)
        flow, inverse = reproject(here, self.world.table, there.camera, there.rotation, there.position)
        return flow, occlusion(here, there, flow, inverse)
