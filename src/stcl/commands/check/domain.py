"""What is on disk in a domain, what is missing, what it means: everything is collected, nothing stops at a mistake.

The files are listed, frames and labels of some clips, or of all, are read (:mod:`stcl.commands.check.survey`), and what
that means is said (:mod:`stcl.commands.check.symptoms`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stcl.commands.check.findings import Finding, Notes, many
from stcl.commands.check.survey import Size, StoredFlow, flow_pairs, survey_flows, survey_frames
from stcl.commands.check.symptoms import (
    Read,
    judge_classes,
    judge_clips,
    judge_flows,
    judge_frames,
    judge_labels,
    judge_listing,
    judge_runs,
)
from stcl.data.base import VideoDataset
from stcl.data.clips import ClipDataset
from stcl.data.listing import Listing
from stcl.errors import DataError, StclError
from stcl.labels import LabelSpace
from stcl.types import FrameRef

SAMPLE_FRAMES = 100
"""About so many frames of a domain are read unless all are."""

LAYOUT_ADVICE = "Mend this first: docs/data.md shows what is expected, under 'Folder trees' and 'Own data'."

SAMPLE_FLOWS = 8
"""So many flows are estimated; flows that lie in files are looked at for every clip that is read."""


@dataclass(frozen=True)
class DomainRequest:
    """What to check, and how.

    Attributes:
        role: ``source``, ``target`` or ``evaluation``.
        dataset: the split.
        open_clips: makes the clips that training or evaluation would take of an index; may raise a StclError.
        with_labels: False where no label may be opened.
        space: classes that are counted.
        batch_size: clips at once.
        calibration: makes the single frames that statistics are recomputed on in the end, or None.
    """

    role: str
    dataset: VideoDataset
    open_clips: Callable[[list[FrameRef]], ClipDataset]
    with_labels: bool
    space: LabelSpace
    batch_size: int
    calibration: Callable[[list[FrameRef]], ClipDataset] | None = None


@dataclass(frozen=True)
class DomainSummary:
    """What was found in a domain, as plain numbers.

    Attributes:
        role, name, split, root: which domain it is.
        sequences, frames: in the split.
        labelled: frames with a label file; None where no label may be looked at.
        clips: that the method, or evaluation, can make.
        sampled: whether some of them were read, not all.
        size: ``(width, height)`` of training; None is that of the files.
        sizes: number of read frames by size on disk, e.g. ``{"1280x640": 100}``.
        read_frames, read_labels: how many were read.
        pixels: of each class in the labels that were read; None without labels.
        ignored: pixels without a class of the label space.
        shown_in: number of labels with each class.
        brightness: mean of the read frames, 0..255.
        flows: how many flows were looked at, of which ``stored_flows`` in files.
        flow_difference, still_difference: mean difference of frames and warped, or unwarped, neighbours, 0..1; or None.
    """

    role: str
    name: str
    split: str
    root: str
    sequences: int = 0
    frames: int = 0
    labelled: int | None = None
    clips: int = 0
    sampled: bool = False
    size: Size | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    read_frames: int = 0
    read_labels: int = 0
    pixels: dict[str, int] | None = None
    ignored: int = 0
    shown_in: dict[str, int] = field(default_factory=dict)
    brightness: float | None = None
    flows: int = 0
    stored_flows: int = 0
    flow_difference: float | None = None
    still_difference: float | None = None


@dataclass(frozen=True)
class DomainCheck:
    """A domain's summary and findings, and what further comparisons need.

    Attributes:
        summary, findings: see their classes.
        clips: None where none can be made.
        read: frames with what was found in them.
    """

    summary: DomainSummary
    findings: list[Finding]
    clips: ClipDataset | None
    read: Read


def check_domain(request: DomainRequest, full: bool = False, workers: int = 0, quiet: bool = True) -> DomainCheck:
    """Look at everything that one domain is made of.

    Args:
        request: see its class.
        full: read all frames and labels that training uses, not an evenly spread sample.
        workers: processes that read.
        quiet: no progress bar.
    """
    dataset = request.dataset
    notes = Notes(request.role, "evaluation" if request.role == "evaluation" else "problem")
    summary = DomainSummary(request.role, dataset.name, dataset.split, str(dataset.root))
    files = _list_files(notes, dataset, request.with_labels)
    if files is None or not files.frames:
        return DomainCheck(summary, notes.found, None, [])
    index, clips = files.index(), None
    if files.labels is not None:
        _check_classes(notes, request)
    try:
        clips = request.open_clips(index)
    except StclError as error:
        # where labels could not be listed, that no frame has one is no news
        hidden = request.with_labels and files.labels is None and isinstance(error, DataError)
        if not hidden and str(error) not in [finding.what for finding in notes.found]:
            notes.stop("no_clip", str(error), "See docs/data.md, 'Which frames are used'.")
    if clips is not None and dataset.step:  # stills have no neighbours
        back = 0 if clips.every_frame else min(clips.spec.frames)
        judge_runs(notes, clips.runs, max(0, *clips.spec.frames) - min(0, back) + 1)
    items, frames = choose_frames(request, index, clips, full)
    sampled = not full and len(items) < (len(index) if clips is None else len(clips))
    facts = survey_frames(dataset, request.space, frames, workers, quiet, f"{request.role}: frames")
    read = [(ref, fact) for (ref, _), fact in zip(frames, facts, strict=True)]
    size = None if clips is None else clips.size
    key = "source.size" if request.role == "source" else "target.size"
    judge_frames(notes, read, size, request.batch_size, key)
    if clips is not None:
        judge_clips(notes, map(clips.refs, items), read)
    if files.labels is not None:
        labels = many(sum(with_label for _, with_label in frames), "label")
        looked_at = f"the {labels} that were read" if sampled else f"the {labels}"
        judge_labels(notes, read, dataset)
        judge_classes(notes, request.space.names, read, _possible(request), looked_at)
    broken = {ref for ref, fact in read if fact.error}
    flow = _check_flow(notes, clips, items, broken, workers, quiet) if clips is not None and clips.flow else {}
    summary = replace(
        summary,
        sequences=len({ref.sequence for ref in index}),
        frames=len(index),
        labelled=None if files.labels is None else len(files.labels) - len(files.orphans),
        clips=0 if clips is None else len(clips),
        sampled=sampled,
        size=size,
        **_count(read, request.space),
        **flow,
    )
    return DomainCheck(summary, notes.found, clips, read)


def choose_frames(
    request: DomainRequest, index: list[FrameRef], clips: ClipDataset | None, full: bool
) -> tuple[list[int], list[tuple[FrameRef, bool]]]:
    """Which clips are looked at, and which frames are read, with the labels of some; the same at every call.

    All that training opens where ``full``, or where that is not much; else the frames of evenly spread clips.
    """
    if clips is None:
        chosen = index if full else [index[item] for item in spread(len(index), SAMPLE_FRAMES)]
        return [], [(ref, ref.label is not None) for ref in chosen]
    used = {ref for item in range(len(clips)) for ref in clips.refs(item).values()}
    everything = full or len(used) <= SAMPLE_FRAMES
    items = [*range(len(clips))] if everything else spread(len(clips), SAMPLE_FRAMES // len(clips.spec.frames) or 1)
    frames: dict[FrameRef, bool] = {}
    if everything and request.calibration is not None:
        single = request.calibration(index)
        frames = {single.refs(item)[0]: False for item in range(len(single))}
    for item in items:
        for offset, ref in clips.refs(item).items():
            opened = offset in clips.spec.labels and ref.label is not None
            frames[ref] = frames.get(ref, False) or opened
    order = {ref: position for position, ref in enumerate(index)}
    return items, sorted(frames.items(), key=lambda pair: order[pair[0]])


def spread(count: int, chosen: int) -> list[int]:
    """At most ``chosen`` of the numbers 0 .. ``count`` - 1, evenly spread."""
    positions = np.linspace(0, count - 1, min(count, chosen)).round().astype(int)
    return [int(position) for position in positions]


def _list_files(notes: Notes, dataset: VideoDataset, with_labels: bool) -> Listing | None:
    """The files; without labels where their folder is missing, without anything where the frames' is."""
    for labels in dict.fromkeys((with_labels, False)):
        try:
            files = dataset.list_files(labels)
        except StclError as error:
            if labels == with_labels or str(error) != notes.found[-1].what:
                notes.stop("layout", str(error), LAYOUT_ADVICE)
            continue
        judge_listing(notes, dataset, files)
        if not notes.found:  # a data set may refuse more than a listing shows
            try:
                dataset.index(labels)
            except StclError as error:
                notes.stop("layout", str(error), "See docs/data.md, 'Folder trees'.")
        return files
    return None


def _check_classes(notes: Notes, request: DomainRequest) -> None:
    """Whether the data set's classes are those of the label space."""
    try:
        request.dataset.check_space(request.space)
    except StclError as error:
        notes.stop("class_map", str(error), "Correct the class map, or space (docs/data.md, 'Classes and ids').")


def _possible(request: DomainRequest) -> set[str]:
    """Classes of the label space that the data set has an id for."""
    return {request.space.merges.get(name, name) for name in request.dataset.raw_names.values()}


def _check_flow(
    notes: Notes, clips: ClipDataset, items: Sequence[int], broken: set[FrameRef], workers: int, quiet: bool
) -> dict[str, Any]:
    """Look at the flows of clips, but not between ``broken`` frames; returns the summary's part about them."""
    flow, stored, estimated = clips.flow, [], []
    for wanted in flow_pairs(clips, items).values():
        pairs = [pair for pair in wanted if broken.isdisjoint(pair)]
        known = [isinstance(flow, StoredFlow) and flow.is_stored(*pair) for pair in pairs]
        stored += [pair for pair, there in zip(pairs, known, strict=True) if there]
        others = [pair for pair, there in zip(pairs, known, strict=True) if not there]
        estimated += [others[position] for position in spread(len(others), SAMPLE_FLOWS)]
    asked = [*stored, *estimated]
    facts = survey_flows(clips, asked, workers, quiet, f"{notes.domain}: flow")
    judge_flows(notes, asked, facts)
    good = [one for one in facts if not one.error]
    return {
        "flows": len(asked),
        "stored_flows": len(stored),
        "flow_difference": float(np.mean([one.difference for one in good])) if good else None,
        "still_difference": float(np.mean([one.still for one in good])) if good else None,
    }


def _count(read: Read, space: LabelSpace) -> dict[str, Any]:
    """The summary's part about what was read."""
    sizes = Counter(f"{facts.size[0]}x{facts.size[1]}" for _, facts in read if facts.size is not None)
    whole = [facts for _, facts in read if facts.size is not None]
    counts = [facts.pixels for _, facts in read if facts.pixels is not None]
    found: dict[str, Any] = {
        "sizes": dict(sizes.most_common()),
        "read_frames": len(read),
        "brightness": float(np.mean([facts.brightness for facts in whole])) if whole else None,
    }
    if counts:
        total, shown = np.sum(counts, 0), np.sum([pixels > 0 for pixels in counts], 0)
        found["read_labels"] = len(counts)
        found["pixels"] = dict(zip(space.names, total[:-1].tolist(), strict=True))
        found["ignored"] = int(total[-1])
        found["shown_in"] = dict(zip(space.names, shown[:-1].tolist(), strict=True))
    return found
