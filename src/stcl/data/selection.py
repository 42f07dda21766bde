"""Which frames of a data set may be the frame t of a clip: all, every N-th, the published ones, or those of a list."""

import re
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from stcl.data.base import VideoDataset
from stcl.errors import DataError, SettingError, shortened
from stcl.files.paths import from_home
from stcl.files.plain import read_text
from stcl.types import FrameRef


def select_frames(dataset: VideoDataset, index: list[FrameRef], frames: str, with_labels: bool) -> set[str]:
    """Names of the frames that may be the frame t of a clip.

    Args:
        dataset: knows which frames its benchmark takes.
        index: sorted frames of the data set.
        frames: ``all``; ``labelled`` (by the label files where labels may be opened, else by the layout); ``published``
            (:meth:`VideoDataset.benchmark_frames`); ``every:N`` (the first, N-th, 2 N-th ... frame of each sequence);
            or ``list:FILE``, see :func:`read_list`.
        with_labels: whether ``index`` was built from the label files too.
    """
    kind, _, detail = frames.partition(":")
    if frames == "published" or (frames == "labelled" and dataset.sparse and not with_labels):
        chosen = {ref.name for ref in dataset.benchmark_frames(index)}
    elif frames == "labelled" and with_labels:
        chosen = {ref.name for ref in index if ref.label}
    elif frames in ("all", "labelled"):
        chosen = {ref.name for ref in index}
    elif kind == "every" and re.fullmatch("0*[1-9][0-9]{0,17}", detail):
        chosen = _every(index, int(detail))
    elif kind == "list" and detail:
        chosen = read_list(from_home(detail), dataset, index)
    else:
        raise SettingError(
            f"Unknown choice of frames '{shortened(frames)}'. Known: all, labelled, published, every:N (such as "
            "every:10), list:FILE (a text file with one frame a line)."
        )
    if not chosen:
        what = f"frames '{shortened(frames)}' take none of the {len(index)} frames"
        raise DataError(f"{dataset}: {what}. Choose other frames.")
    return chosen


def read_list(path: Path, dataset: VideoDataset, index: list[FrameRef]) -> set[str]:
    """Names of the frames that a text file lists, one a line; blank lines and what follows ``#`` are passed over.

    A line is a frame's name, or its path below the root, with or without the suffix. Leading folders may be left out
    where the rest still means one frame, so that published lists can be used as they are.

    Raises:
        SettingError: the file cannot be read, lists a frame twice, one that is not there or several by one line.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise SettingError(f"The list of frames {path} cannot be read: {reason}. Check the path.") from None
    known = _addresses(dataset.root, index)
    first: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = known.get(text.removeprefix("./"), set())
        if len(found) != 1:
            raise SettingError(f"{path}, line {number}: {_problem(dataset, text, found, known)}")
        (name,) = found
        if name in first:
            raise SettingError(f"{path}, line {number}: '{text}' stands in line {first[name]} already. Take one out.")
        first[name] = number
    return set(first)


def _addresses(root: Path, index: list[FrameRef]) -> dict[str, set[str]]:
    """``name or end of a path -> names of the frames that it may mean``."""
    known: dict[str, set[str]] = {}
    for ref in index:
        known.setdefault(ref.name, set()).add(ref.name)
        if ref.frame is not None:  # the frames of one video file share its path
            continue
        parts = ref.image.relative_to(root).parts
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            for address in (end, end.removesuffix(ref.image.suffix)):
                known.setdefault(address, set()).add(ref.name)
    return known


def _problem(dataset: VideoDataset, text: str, found: set[str], known: dict[str, set[str]]) -> str:
    where = f"split '{dataset.split}' of data set '{dataset.name}'"
    if found:
        return f"'{text}' may be any of {', '.join(sorted(found)[:8])} in {where}. Give more of the path."
    names = sorted(set().union(*known.values()))
    nearest = get_close_matches(PurePosixPath(text).stem, names, n=1, cutoff=0.4) or names
    return f"there is no frame '{text}' in {where}; the nearest name is '{nearest[0]}'."


def _every(index: list[FrameRef], step: int) -> set[str]:
    position: dict[str, int] = {}
    chosen = set()
    for ref in index:
        position[ref.sequence] = position.get(ref.sequence, -1) + 1
        if position[ref.sequence] % step == 0:
            chosen.add(ref.name)
    return chosen
