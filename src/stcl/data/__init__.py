"""Data sets of videos and of stills in published layouts, and own data. Another one is a file and a line below."""

from stcl.data.base import VideoDataset
from stcl.data.clips import ClipDataset
from stcl.data.datasets.bdd import BDD
from stcl.data.datasets.camvid import CamVid
from stcl.data.datasets.cityscapes import Cityscapes
from stcl.data.datasets.cityscapes_seq import CityscapesSeq
from stcl.data.datasets.folder import Folder
from stcl.data.datasets.gta5 import GTA5
from stcl.data.datasets.synthia_rand import SynthiaRand
from stcl.data.datasets.synthia_seq import SynthiaSeq
from stcl.data.datasets.viper import Viper
from stcl.data.loading import ClipSampler, RareClassSampler, class_pixels, make_eval_loader, make_loader
from stcl.errors import lookup

DATASETS: dict[str, type[VideoDataset]] = {
    "synthia_seq": SynthiaSeq,
    "viper": Viper,
    "cityscapes_seq": CityscapesSeq,
    "bdd": BDD,
    "camvid": CamVid,
    "gta5": GTA5,
    "synthia_rand": SynthiaRand,
    "cityscapes": Cityscapes,
    "folder": Folder,
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
