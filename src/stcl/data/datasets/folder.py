"""Own data: frames and videos of any name, and labelled pictures with masks, from a folder or a single video file.

Source: the user. Unlabelled are pictures and video files in folders of any depth: each folder of pictures and each
video is a sequence. Labelled are ``images/`` and ``masks/`` (PNG of ids, palette or colours) of equal names, with a
class map.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stcl.data.base import IMAGE_SUFFIXES, VideoDataset
from stcl.data.datasets.class_map import ClassMap, read_class_map
from stcl.data.frames import follows
from stcl.data.io import Label
from stcl.data.listing import Key
from stcl.data.video_index import VideoPool
from stcl.errors import DataError, SettingError
from stcl.files.names import file_name
from stcl.files.paths import real_path
from stcl.files.writing import counting_order
from stcl.labels import LabelSpace
from stcl.types import FrameRef

CLASSES = "classes.yaml"
"""The class map at the root, unless another one is given."""

# fmt: off
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m2v", ".ts", ".mts", ".m2ts", ".vob", ".wmv",
    ".asf", ".flv", ".3gp", ".3g2", ".ogv", ".mxf", ".h264", ".264", ".h265", ".265", ".hevc", ".ivf", ".mjpeg",
    ".mjpg", ".y4m",
)
# fmt: on
OTHER_PICTURES = (".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".exr", ".heic", ".dng", ".ppm", ".tga")

_LONGEST_BYTES = 80  # of a sequence's name, so that the names of two frames in one file's name can be read whole


class Folder(VideoDataset):
    """A root with folders named like splits is read split by split; any other root is all one split, whatever its name.

    Frames are in counting order. A jump in their numbers, or in the times of a video, ends a clip.
    """

    name = "folder"
    layout = (
        "<root>[/<split>]/ with pictures or video files, in folders of any depth; or, labelled, <root>[/<split>]/"
        "images/ and masks/<same name>.png with <root>/classes.yaml. <root> may also be one video file"
    )
    splits = ("train", "val", "test")
    citation = "own data"
    own_classes = True
    root_suffixes = VIDEO_SUFFIXES

    def __init__(self, root: str | Path, split: str = "train", classes: str | Path | None = None) -> None:
        super().__init__(root, split, classes)
        self._videos = VideoPool()

    def find_frames(self) -> Iterable[FrameRef]:
        """Pictures and videos below the root; videos are indexed by their packets."""
        taken: dict[str, Path] = {}
        for place, pictures in self._sequences():
            name = self._sequence_name(place)
            if name in taken:
                raise DataError(f"{self}: {taken[name]} and {place} would both be sequence '{name}'. Rename one.")
            taken[name] = place
            yield from _picture_refs(name, pictures) if pictures else self._video_refs(name, place)
        if not taken:
            there = ", ".join(sorted(path.name for path in self._frame_root().iterdir())[:12]) or "nothing"
            raise DataError(f"{self} holds no frame; in {self._frame_root()} there is: {there}. {self._expected}")

    def find_labels(self) -> Iterable[tuple[Key, Path]]:
        """Masks of the names of the images; PNG only, as other formats change values."""
        images, masks = self._frame_root(), self._mask_root()
        self.class_map  # noqa: B018  its mistakes come before those in the masks
        keys = {ref.image.relative_to(images).with_suffix(""): (ref.sequence, ref.number) for ref in self.find_frames()}
        for _, files in self._walk(masks):
            for position, path in enumerate(files):
                if path.suffix.lower() in (*IMAGE_SUFFIXES[1:], *OTHER_PICTURES):
                    raise DataError(f"{self}: mask {path} is no PNG. Other formats change values: export masks as PNG.")
                if path.suffix.lower() != ".png":
                    continue
                name = path.relative_to(masks).with_suffix("")
                yield keys.get(name, (str(name.parent), -1 - position)), path  # no frame has a number below 0

    def index(self, with_labels: bool) -> list[FrameRef]:
        """Frames by sequence and number; two frames of one name, which would share files, are refused."""
        index = super().index(with_labels)
        taken: dict[str, FrameRef] = {}
        for ref in index:
            if (other := taken.setdefault(ref.name, ref)) is not ref:
                raise DataError(
                    f"{self}: {other.image} and {ref.image} would both be frame '{ref.name}'. Rename one's folder."
                )
        return index

    @cached_property
    def class_map(self) -> ClassMap:
        """The class map that was given, or the one at the root."""
        path = self.classes or self.root / CLASSES
        if self.classes is None and not path.is_file():
            raise SettingError(
                f"{self} has masks, but no class map: there is no {path}. Write one (a line such as '1: road' for each "
                "value of the masks, see docs/data.md), or name one with the key 'classes' of this domain."
            )
        return read_class_map(path)

    @property
    def raw_names(self) -> Mapping[int, str]:
        """``raw id -> class name`` by the class map."""
        return self.class_map.names

    @property
    def ids_place(self) -> str:
        """The class map, and the word in it."""
        return f"{self.class_map.path} as 'ignore'"

    @property
    def values_identity(self) -> str:
        """The colours, or the channel of the ids."""
        colors = self.class_map.colors
        return f"{self.class_map.channel} {None if colors is None else colors.tolist()}"

    def check_space(self, space: LabelSpace) -> None:
        """Refuse a class map with classes that the space lacks."""
        self._mask_root()
        self.class_map.check(space)

    def read_frame(self, ref: FrameRef) -> NDArray[np.uint8]:
        """A frame ``(H, W, 3)`` uint8 RGB, from its picture or its video."""
        return super().read_frame(ref) if ref.frame is None else self._videos.read(ref.image, ref.frame)

    def read_raw_label(self, ref: FrameRef) -> Label:
        """The raw ids ``(H, W)`` of a mask; colours are numbered by the class map."""
        return super().read_raw_label(ref) if ref.label is None else self.class_map.read(ref.label)

    # ---- where things lie ----

    def _split_folder(self, parent: Path) -> Path:
        """The split's folder in ``parent`` where there are folders of splits, else ``parent``."""
        if not any((parent / split).is_dir() for split in self.splits):
            return parent
        self._refuse_frames(parent, "the folders of splits")
        return self.folder(*(parent / self.split).relative_to(self.root).parts)

    def _base(self) -> Path:
        """What holds ``images`` and ``masks``, or else the frames."""
        return self._split_folder(self.root) if self.root.is_dir() else self.root

    def _frame_root(self) -> Path:
        base = self._base()
        if not (base / "images").is_dir():
            if (base / "masks").is_dir():
                raise DataError(f"{self}: {base} has masks, but no folder 'images' with their frames. {self._expected}")
            return base
        self._refuse_frames(base, "the folder 'images'")
        return self._split_folder(base / "images")

    def _mask_root(self) -> Path:
        base, images = self._base(), self._frame_root()
        if images.is_relative_to(base / "images") and (base / "masks").is_dir():
            return self.folder(*(base / "masks" / images.relative_to(base / "images")).relative_to(self.root).parts)
        missing = "is no folder 'masks' beside 'images'" if images != base else "are no folders 'images' and 'masks'"
        raise DataError(
            f"{self} has no labels: there {missing} in {base}. Labels are needed for a "
            f"source and for evaluation, never for the target of training. {self._expected}"
        )

    @property
    def _expected(self) -> str:
        return f"Expected: {self.layout}"

    def _refuse_frames(self, folder: Path, beside: str) -> None:
        """What lies beside the folders that are read would be lost without a word."""
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) and not path.name.startswith("."):
                raise DataError(f"{self}: {path} lies beside {beside}, where it is not read. Move it. {self._expected}")

    def _walk(self, folder: Path) -> Iterator[tuple[Path, list[Path]]]:
        """A folder and those below it, each with its files; what is hidden is left out."""
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
        entries.sort(key=lambda path: counting_order(path.name))
        above = [path for path in (folder, *folder.parents) if path != self.root and path.is_relative_to(self.root)]
        for path in [*above, *entries]:
            if path.is_symlink():
                raise DataError(
                    f"{self}: {path} is a link to {real_path(path)}. Links below the root are refused, as what they "
                    "lead to could be read twice or be someone else's: copy or move it there, or name it as the root."
                )
        yield folder, [path for path in entries if path.is_file()]
        for path in entries:
            if path.is_dir():
                yield from self._walk(path)

    def _sequences(self) -> Iterator[tuple[Path, list[Path]]]:
        """Folders with their pictures, and video files with none."""
        top = self._frame_root()
        for folder, files in self._walk(top) if top.is_dir() else [(top.parent, [top])]:
            pictures, videos, others = (
                [path for path in files if path.suffix.lower() in kinds]
                for kinds in (IMAGE_SUFFIXES, VIDEO_SUFFIXES, OTHER_PICTURES)
            )
            if others:
                raise DataError(f"{self}: {others[0]} is a picture of another kind. Make .png or .jpg of it.")
            if pictures and videos:
                raise DataError(
                    f"{self}: {folder} holds pictures ({pictures[0].name}) and videos ({videos[0].name}). If they show "
                    "the same, keep one; else give each a folder of its own."
                )
            if pictures:
                self._check_numbered(pictures)
                yield folder, pictures
            yield from ((video, []) for video in videos)

    def _check_numbered(self, pictures: list[Path]) -> None:
        """Where names have numbers, one without has no place among them."""
        bare = [path for path in pictures if not re.search(r"\d", path.stem)]
        if bare and len(bare) < len(pictures):
            raise DataError(
                f"{self}: file {bare[0]} does not follow the layout: it has no number, but {len(pictures) - len(bare)} "
                f"others beside it have, so its place in the sequence is unknown. Number or move it. {self._expected}"
            )

    def _sequence_name(self, place: Path) -> str:
        """Name of a folder or video by its path below the root, fit for file names."""
        base, top = self._base(), self._frame_root()
        parts = [*place.relative_to(top).parts] or [real_path(base).name or "root"]
        if place.is_file():
            parts[-1] = Path(parts[-1]).stem
        return file_name("-".join(parts), _LONGEST_BYTES)

    def _video_refs(self, name: str, path: Path) -> Iterator[FrameRef]:
        gaps = np.cumsum(~self._videos.index(path).follows)
        for frame, gap in enumerate(gaps.tolist()):
            yield FrameRef(name, frame + gap - 1, path, frame=frame)


def _picture_refs(name: str, pictures: list[Path]) -> Iterator[FrameRef]:
    """Frames numbered by their order, with a number left out at each gap."""
    stems = list(dict.fromkeys(path.stem for path in pictures))  # two files of one frame get one number, and an error
    numbers, number = dict[str, int](), -1
    for stem, near in zip(stems, follows(stems), strict=True):
        number += 1 if near or number < 0 else 2
        numbers[stem] = number
    for path in pictures:
        yield FrameRef(name, numbers[path.stem], path)
