"""Write clips of TwinStreets to disk in the layouts of the real data sets.

Next to the frames lies, where asked for, the exact flow: ``exact_flow/`` at the root mirrors the frames' folders and
holds ``<frame>_to_<earlier frame>.png`` in KITTI's format (see :mod:`stcl.files.pictures`).
``twinstreets_<split>.json`` is written last: it says what was asked for, and that it is complete. Until then the same
text lies in a ``.partial`` file, by which an interrupted export is told from other people's files.

The seed of a clip depends on (seed, split, clip) alone, through SHA-256, so splits never share a street. Each style
draws its own streets from that seed.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from stcl.errors import DataError, SettingError, lookup
from stcl.files.folders import hold_lock, remove_abandoned
from stcl.files.names import file_name
from stcl.files.paths import from_home
from stcl.files.pictures import encode_flow, encode_image
from stcl.files.plain import read_json
from stcl.files.writing import EXACT_FLOW_FOLDER, exact_flow_path, write_atomic
from stcl.labels import get_space
from stcl.terminal import plain_console, progress_bar
from stcl.twinstreets.clip import StreetClip
from stcl.twinstreets.layouts import LAYOUTS, Layout
from stcl.twinstreets.parts import SPACE_NAME
from stcl.twinstreets.seeding import VERSION
from stcl.twinstreets.styles import get_style

LOCK = ".twinstreets_{split}.lock"

_SYNTHIA_SIZE = (1280, 760)


@dataclass(frozen=True)
class ExportRequest:
    """What decides the files of an export; equal requests give equal files.

    Args:
        layout: ``synthia-seq``, ``viper`` or ``cityscapes-seq``.
        style: name of the appearance.
        style_seed: draws the details of the appearance.
        seed: draws the streets, together with the split's name and the clip's number.
        split: name of the split, also where the layout has no folder for it.
        clips: number of clips.
        frames: rendered frames a clip.
        first_frame: number of the first rendered frame in its clip; None: 0, but in ``cityscapes-seq`` up to 20
            frames end at the labelled frame 19 (6 frames are 14..19).
        size: ``(width, height)`` in pixels.
        label_every: None for the frames that the real data set labels, 1 for all.
        flow_offsets: exact flow from each frame to the one so many frames before it, e.g. ``(1, 2)``.
        version: of the renderer.
    """

    layout: str
    style: str
    style_seed: int = 0
    seed: int = 0
    split: str = "train"
    clips: int = 8
    frames: int = 30
    first_frame: int | None = None
    size: tuple[int, int] = (512, 256)
    label_every: int | None = None
    flow_offsets: tuple[int, ...] = ()
    version: str = VERSION

    def __post_init__(self) -> None:
        layout = lookup(LAYOUTS, self.layout, "export layout")
        get_style(self.style, self.style_seed)
        if min(self.clips, self.frames) < 1:
            raise SettingError(f"An export needs at least 1 clip of 1 frame, found {self.clips} of {self.frames}.")
        plain = self.split.replace("-", "").replace("_", "").isalnum()
        if not plain or self.split != file_name(self.split):
            raise SettingError(
                f"Split '{self.split}' becomes part of file names: use letters, digits, '-' and '_', and no name of a "
                "device."
            )
        if self.label_every not in (None, 1):
            raise SettingError(
                f"label_every is none (as in the real data set) or 1 (every frame), not {self.label_every}."
            )
        if any(offset < 1 for offset in self.flow_offsets):
            raise SettingError(f"Flow offsets count frames back and are at least 1, found {self.flow_offsets}.")
        if any(offset >= self.frames for offset in self.flow_offsets):
            raise SettingError(f"Flow offsets {self.flow_offsets} do not fit into a clip of {self.frames} frames.")
        if self.layout == "synthia-seq" and self.size == _SYNTHIA_SIZE and self.flow_offsets:
            raise SettingError(
                "Frames of 1280x760 in layout synthia-seq are cropped by the data set and would not fit their exact "
                "flow. Choose another size, such as 1280x640, or no exact flow."
            )
        labelled = layout.labelled_frame
        if labelled is not None and labelled not in self.rendered:
            raise SettingError(
                f"Layout {self.layout} labels frame {labelled}, but frames {self.rendered[0]} to {self.rendered[-1]} "
                f"would be rendered. Leave first_frame out, or include frame {labelled}."
            )

    @property
    def rendered(self) -> range:
        """Numbers of the rendered frames of a clip."""
        first = self.first_frame
        if first is None:
            labelled = LAYOUTS[self.layout].labelled_frame
            first = 0 if labelled is None else max(0, labelled + 1 - self.frames)
        return range(first, first + self.frames)

    def labelled(self, frame: int) -> bool:
        """Whether a frame gets a label file."""
        return self.label_every == 1 or LAYOUTS[self.layout].labelled_frame in (None, frame)

    def flows(self, frame: int) -> list[int]:
        """Frames that the exact flow from ``frame`` leads to."""
        return [frame - offset for offset in self.flow_offsets if frame - offset in self.rendered]

    def clip_seed(self, clip: int) -> int:
        """Seed of a street, 63 bits."""
        digest = hashlib.sha256(f"twinstreets/{self.seed}/{self.split}/{clip}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def to_json(self) -> dict[str, Any]:
        """The request as the manifest holds it."""
        return json.loads(json.dumps(asdict(self)))


class ExportResult(NamedTuple):
    """What an export did: ``frames`` rendered now in ``seconds``; both are 0 where all was there already."""

    root: Path
    frames: int
    seconds: float


def export(root: str | Path, request: ExportRequest, workers: int = 1, progress: bool = True) -> ExportResult:
    """Render the clips of a request below ``root``.

    A complete export of the same request is left as it is, a half-written one is completed (clip by clip), and a
    folder that holds anything else is refused.

    Args:
        root: folder that becomes the root of the data set; layouts with split folders share it between splits.
        request: what to render.
        workers: processes; each renders whole clips.
        progress: show a bar and messages on standard error.
    """
    root = from_home(root)
    if root.exists() and not root.is_dir():
        raise DataError(f"Cannot export to {root}: it is a file. Give a folder.")
    busy = f"Another process is rendering split '{request.split}' into {root} right now. Wait for it, or stop it first."
    with hold_lock(root / LOCK.format(split=request.split), busy):
        return _export(root, request, workers, progress)


def _export(root: Path, request: ExportRequest, workers: int, progress: bool) -> ExportResult:
    """The same in a folder that is this process's alone."""
    manifest = root / f"twinstreets_{request.split}.json"
    partial = manifest.with_suffix(".partial")
    _refuse_foreign(root, manifest, partial, request)
    missing = [clip for clip in range(request.clips) if not all(path.exists() for path in _files(root, request, clip))]
    if manifest.exists() and not missing:
        if progress:
            plain_console(stderr=True).print(f"{root}: split '{request.split}' is complete, nothing to do.")
        return ExportResult(root, 0, 0.0)
    _street(request, clip=0)  # refuses impossible sizes before anything is written
    for folder in {path.parent for clip in missing for path in _files(root, request, clip)}:
        remove_abandoned(folder)
    text = json.dumps(request.to_json(), indent=2).encode()
    write_atomic(partial, text)
    manifest.unlink(missing_ok=True)  # there, but files of it were deleted
    start = time.perf_counter()
    with progress_bar(not progress) as bar:
        task = bar.add_task(f"clips -> {root}", total=request.clips, completed=request.clips - len(missing))
        for _ in _run(root, request, missing, workers):
            bar.advance(task)
    write_atomic(manifest, text)
    partial.unlink()
    return ExportResult(root, len(missing) * request.frames, time.perf_counter() - start)


def _run(root: Path, request: ExportRequest, clips: list[int], workers: int) -> Iterator[int]:
    """Numbers of the clips as they are finished."""
    if workers <= 1 or len(clips) <= 1:
        for clip in clips:
            yield _write_clip(root, request, clip)
        return
    with ProcessPoolExecutor(min(workers, len(clips)), initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        jobs = [pool.submit(_write_clip, root, request, clip) for clip in clips]
        try:
            for job in as_completed(jobs):
                yield job.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _street(request: ExportRequest, clip: int) -> StreetClip:
    style = get_style(request.style, request.style_seed)
    return StreetClip(style, request.clip_seed(clip), size=request.size, frames=request.rendered[-1] + 1)


def _write_clip(root: Path, request: ExportRequest, clip: int) -> int:
    """Render one clip and write its files."""
    layout, space = LAYOUTS[request.layout], get_space(SPACE_NAME)
    street = _street(request, clip)
    for frame in request.rendered:
        rendered = street.render(frame)
        path = layout.image_path(root, request.split, clip, frame)
        write_atomic(path, encode_image(rendered.image, path.suffix))
        if request.labelled(frame):
            content = encode_image(layout.encode_ids(rendered.label, space))
            write_atomic(layout.label_path(root, request.split, clip, frame), content)
        for other in request.flows(frame):
            flow, occluded = street.flow(frame, other)
            write_atomic(_flow_path(root, request, layout, clip, (frame, other)), encode_flow(flow, ~occluded))
    return clip


def _files(root: Path, request: ExportRequest, clip: int) -> Iterator[Path]:
    """Every file of one clip."""
    layout = LAYOUTS[request.layout]
    for frame in request.rendered:
        yield layout.image_path(root, request.split, clip, frame)
        if request.labelled(frame):
            yield layout.label_path(root, request.split, clip, frame)
        for other in request.flows(frame):
            yield _flow_path(root, request, layout, clip, (frame, other))


def _flow_path(root: Path, request: ExportRequest, layout: Layout, clip: int, pair: tuple[int, int]) -> Path:
    image_a, image_b = (layout.image_path(root, request.split, clip, frame) for frame in pair)
    return exact_flow_path(root, image_a, image_b)


def _refuse_foreign(root: Path, manifest: Path, partial: Path, request: ExportRequest) -> None:
    """Raise unless the split's folders are empty or were begun by the same request."""
    stored = next((path for path in (manifest, partial) if path.exists()), None)
    if stored is None:
        found = next(_contents(root, request), None)
        if found is not None:
            raise DataError(
                f"Cannot export to {root}: it holds {found}, which belongs to no export of split '{request.split}' "
                f"(there is no {manifest.name}). Give an empty folder."
            )
        return
    try:
        before = dict(read_json(stored))
    except (ValueError, TypeError) as error:
        raise DataError(
            f"Export record {stored} is damaged ({error}). Delete it and what was rendered with it, and run again."
        ) from error
    now = request.to_json()
    changed = [
        f"{key} {before.get(key)} -> {now.get(key)}" for key in {**before, **now} if before.get(key) != now.get(key)
    ]
    if changed:
        raise DataError(
            f"Cannot export to {root}: {stored.name} there records an export with other settings "
            f"({', '.join(changed)}). Give another folder, or delete that one first."
        )


def _contents(root: Path, request: ExportRequest) -> Iterator[Path]:
    """Files and folders where the split's own files would lie."""
    if root.is_dir():
        for template in LAYOUTS[request.layout].folders:
            folder = root if template == "*" else root / template.format(split=request.split)
            for base in (folder, root / EXACT_FLOW_FOLDER / folder.relative_to(root)):
                yield from (path for path in base.glob("*") if path != base and not path.match(LOCK.format(split="*")))
