"""Video data sets in their published layouts. A new one is a file, its ids in ``labels.RAW_IDS`` and a line below."""

from stcl.data.base import VideoDataset
from stcl.data.camvid import CamVid
from stcl.data.cityscapes_seq import CityscapesSeq
from stcl.data.clips import ClipDataset
from stcl.data.loading import ClipSampler, RareClassSampler, class_pixels, make_eval_loader, make_loader
from stcl.data.synthia_seq import SynthiaSeq
from stcl.errors import lookup

DATASETS: dict[str, type[VideoDataset]] = {
    "synthia_seq": SynthiaSeq,
    "cityscapes_seq": CityscapesSeq,
    "camvid": CamVid,
}
"""Every data set by name."""


def get_dataset(name: str) -> type[VideoDataset]:
    """The data set class called ``name``; an unknown name lists the right ones."""
    return lookup(DATASETS, name, "data set")


__all__ = [
    "DATASETS",
    "ClipDataset",
    "ClipSampler",
    "RareClassSampler",
    "VideoDataset",
    "class_pixels",
    "get_dataset",
    "make_eval_loader",
    "make_loader",
]
