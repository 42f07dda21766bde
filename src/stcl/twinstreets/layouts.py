"""Folder layouts of the real data sets, as an export writes them."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from stcl.labels import LabelSpace, raw_ids_of

THINGS = ("person", "rider", "car")
"""Classes whose connected regions get instance ids."""


@dataclass(frozen=True)
class Layout:
    """Where frames and labels lie; the templates know ``split``, ``clip`` and ``frame`` (numbers from 0).

    Args:
        dataset: key in ``labels.RAW_IDS``, whose ids the label files hold.
        image: template of the frames' paths.
        label: template of the label files' paths.
        folders: templates of the folders that belong to one split alone; ``*`` is everything in the root.
        labelled_frame: the only frame of a clip that is labelled, None where all are.
        instances: label files are 16-bit with 3 channels: class id, instance id, 0.
    """

    dataset: str
    image: str
    label: str
    folders: tuple[str, ...]
    labelled_frame: int | None = None
    instances: bool = False

    def image_path(self, root: Path, split: str, clip: int, frame: int) -> Path:
        """File of a frame."""
        return root / self.image.format(split=split, clip=clip, frame=frame)

    def label_path(self, root: Path, split: str, clip: int, frame: int) -> Path:
        """File of a frame's label."""
        return root / self.label.format(split=split, clip=clip, frame=frame)

    def encode_ids(self, label: NDArray[np.uint8], space: LabelSpace) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Train ids ``(H, W)`` as the pixels of a label file: raw ids, with instance ids where the layout has them."""
        raw = raw_ids_of(self.dataset, space)[label]
        if not self.instances:
            return raw.astype(np.uint8)
        things = np.isin(label, [space.index(name) for name in THINGS]).astype(np.uint8)
        instance = cv2.connectedComponents(things)[1].astype(np.uint16)
        return np.stack((raw, instance, np.zeros_like(raw)), axis=-1)


_CITY = "{split}/twinstreets/twinstreets_{clip:06d}_{frame:06d}"

LAYOUTS: dict[str, Layout] = {
    "synthia-seq": Layout(
        "synthia_seq",
        image="clip_{clip:04d}/rgb/{frame:06d}.png",
        label="clip_{clip:04d}/label/{frame:06d}.png",
        folders=("*",),
        instances=True,
    ),
    "viper": Layout(
        "viper",
        image="{split}/img/{clip:03d}/{clip:03d}_{frame:05d}.jpg",
        label="{split}/cls/{clip:03d}/{clip:03d}_{frame:05d}.png",
        folders=("{split}",),
    ),
    "cityscapes-seq": Layout(
        "cityscapes_seq",
        image=f"leftImg8bit_sequence/{_CITY}_leftImg8bit.png",
        label=f"gtFine/{_CITY}_gtFine_labelIds.png",
        folders=("leftImg8bit_sequence/{split}", "gtFine/{split}"),
        labelled_frame=19,
    ),
}
"""Every layout by name."""
