"""What is in a domain, what is missing and what that means: everything is collected, nothing stops at a mistake.

The files are listed, frames, labels and flows of some clips, or of all, are read (:mod:`stcl.commands.check.survey`),
and what they mean is noted (:mod:`stcl.commands.check.findings`).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from stcl.commands.check.findings import (
    Finding,
    Findings,
    judge_classes,
    judge_clips,
    judge_flows,
    judge_frames,
    judge_labels,
    judge_listing,
    judge_runs,
    many,
    size_text,
)
from stcl.commands.check.survey import FrameFacts, Size, flow_pairs, read_flow, read_frame, survey
from stcl.data.base import VideoDataset
from stcl.data.clips import ClipDataset
from stcl.data.listing import Listing
from stcl.errors import DataError, StclError
from stcl.flow.reading import ReadingFlow
from stcl.labels import LabelSpace
from stcl.types import FrameRef

SAMPLE_FRAMES = 100  # about so many frames of a domain are read unless all are
SAMPLE_FLOWS = 8  # so many flows are estimated; flows that lie in files are looked at for every clip that is read
LAYOUT_ADVICE = "Mend this first: docs/data.md shows what is expected, under 'Folder trees' and 'Own data'."


@dataclass(frozen=True)
class Domain:
    """What to check."""

    role: str  # source, target or evaluation
    dataset: VideoDataset
    open_clips: Callable[[list[FrameRef]], ClipDataset]  # that training or evaluation would take of an index
    with_labels: bool  # False where no label may be opened
    space: LabelSpace
    batch_size: int
    calibration: Callable[[list[FrameRef]], ClipDataset] | None = None  # single frames to recompute statistics on


@dataclass(frozen=True)
class DomainSummary:
    """What is in a domain, as plain numbers."""

    role: str
    name: str  # of the data set
    split: str
    root: str
    sequences: int = 0
    frames: int = 0
    labelled: int | None = None  # frames with a label file; None where no label may be looked at
    clips: int = 0  # that the method, or evaluation, can make
    sampled: bool = False  # whether some of them were read, not all
    size: Size | None = None  # width and height in training; None: as on disk
    sizes: dict[str, int] = field(default_factory=dict)  # read frames by size on disk, e.g. {"1280x640": 100}
    read_frames: int = 0
    read_labels: int = 0
    pixels: dict[str, int] | None = None  # of each class in the labels that were read; None without labels
    ignored: int = 0  # pixels without a class of the label space
    shown_in: dict[str, int] = field(default_factory=dict)  # number of labels with each class
    brightness: float | None = None  # mean of the read frames, 0..255
    flows: int = 0  # that were looked at
    stored_flows: int = 0  # of which so many lie in files
    flow_difference: float | None = None  # mean difference of frames and their warped neighbours, 0..1
    still_difference: float | None = None  # the same without warping


@dataclass(frozen=True)
class DomainCheck:
    """A domain's summary and findings, and its clips (None where none can be made) and frames that were read."""

    summary: DomainSummary
    findings: list[Finding]
    clips: ClipDataset | None = None
    read: Sequence[FrameFacts] = ()


def check_domain(domain: Domain, full: bool = False, workers: int = 0, quiet: bool = True) -> DomainCheck:
    """Look at everything that one domain is made of.

    Args:
        domain: see its class.
        full: read all frames and labels that training uses, not an evenly spread sample.
        workers: processes that read.
        quiet: no progress bar.
    """
    dataset, findings = domain.dataset, Findings(domain.role)
    summary = DomainSummary(domain.role, dataset.name, dataset.split, str(dataset.root))
    files = _list_files(findings, dataset, domain.with_labels)
    if files is None or not files.frames:
        return DomainCheck(summary, findings.items)
    index = files.index()
    clips = _open_clips(findings, domain, index, files.labels is not None)
    items, frames = choose_frames(domain, index, clips, full)
    sampled = not full and len(items) < (len(index) if clips is None else len(clips))
    title = f"{domain.role}: frames"
    read = survey(partial(read_frame, dataset, domain.space), frames, workers, quiet, title)
    size = None if clips is None else clips.size
    judge_frames(findings, read, size, domain.batch_size)
    if clips is not None:
        judge_clips(findings, clips, items, read)
    if files.labels is not None:
        labels = many(sum(with_label for _, with_label in frames), "label")
        judge_labels(findings, read, dataset)
        labels = f"the {labels} that were read" if sampled else f"the {labels}"
        judge_classes(findings, read, dataset, domain.space, labels)
    summary = replace(
        summary,
        sequences=len({ref.sequence for ref in index}),
        frames=len(index),
        labelled=None if files.labels is None else len(files.labels) - len(files.orphans),
        clips=0 if clips is None else len(clips),
        sampled=sampled,
        size=size,
        **_count(read, domain.space),
        **_check_flows(findings, clips, items, read, workers, quiet),
    )
    return DomainCheck(summary, findings.items, clips, read)


def _list_files(findings: Findings, dataset: VideoDataset, with_labels: bool) -> Listing | None:
    """The files; without labels where their folder is missing, without anything where the frames' is."""
    for labels in dict.fromkeys((with_labels, False)):
        try:
            files = dataset.list_files(labels)
        except StclError as error:
            if labels == with_labels or str(error) != findings.items[-1].what:
                findings.stop("layout", str(error), LAYOUT_ADVICE)
            continue
        judge_listing(findings, dataset, files)
        if not findings.items:  # a data set may refuse more than a listing shows
            try:
                dataset.index(labels)
            except StclError as error:
                findings.stop("layout", str(error), "See docs/data.md, 'Folder trees'.")
        return files
    return None


def _open_clips(findings: Findings, domain: Domain, index: list[FrameRef], listed: bool) -> ClipDataset | None:
    """The domain's clips; ``listed`` says whether its labels could be."""
    if listed:
        try:
            domain.dataset.check_space(domain.space)
        except StclError as error:
            advice = "Correct the class map, or space (docs/data.md, 'Classes and ids')."
            findings.stop("class_map", str(error), advice)
    try:
        clips = domain.open_clips(index)
    except StclError as error:
        # where labels could not be listed, that no frame has one is no news
        hidden = domain.with_labels and not listed and isinstance(error, DataError)
        if not hidden and str(error) not in [finding.what for finding in findings.items]:
            findings.stop("no_clip", str(error), "See docs/data.md, 'Which frames are used'.")
        return None
    if not clips.dataset.stills:  # which have no neighbours
        judge_runs(findings, clips)
    return clips


def choose_frames(
    domain: Domain, index: list[FrameRef], clips: ClipDataset | None, full: bool
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
    if everything and domain.calibration is not None:
        single = domain.calibration(index)
        frames = {single.refs(item)[0]: False for item in range(len(single))}
    for item in items:
        for offset, ref in clips.refs(item).items():
            opened = offset in clips.spec.labels and ref.label is not None
            frames[ref] = frames.get(ref, False) or opened
    order = {ref: position for position, ref in enumerate(index)}
    return items, sorted(frames.items(), key=lambda pair: order[pair[0]])


def spread(count: int, chosen: int) -> list[int]:
    """At most ``chosen`` of the numbers 0 .. ``count`` - 1, evenly spread."""
    positions: list[int] = np.linspace(0, count - 1, min(count, chosen)).round().astype(int).tolist()
    return positions


def _count(read: Sequence[FrameFacts], space: LabelSpace) -> dict[str, Any]:
    """The summary's part about frames and labels."""
    whole = [facts for facts in read if facts.size is not None]
    sizes = Counter(size_text(facts.size) for facts in read if facts.size is not None)
    summary: dict[str, Any] = {
        "sizes": dict(sizes.most_common()),
        "read_frames": len(read),
        "brightness": float(np.mean([facts.brightness for facts in whole])) if whole else None,
    }
    counts = [facts.pixels for facts in read if facts.pixels is not None]
    if counts:
        total, labels = np.sum(counts, 0), np.sum([pixels > 0 for pixels in counts], 0)
        summary["read_labels"] = len(counts)
        summary["pixels"] = dict(zip(space.names, total[:-1].tolist(), strict=True))
        summary["ignored"] = int(total[-1])
        summary["shown_in"] = dict(zip(space.names, labels[:-1].tolist(), strict=True))
    return summary


def _check_flows(
    findings: Findings,
    clips: ClipDataset | None,
    items: Sequence[int],
    read: Sequence[FrameFacts],
    workers: int,
    quiet: bool,
) -> dict[str, Any]:
    """The summary's part about flow, which is not asked for between frames that cannot be read."""
    if clips is None or clips.flow is None:
        return {}
    flow = clips.flow = ReadingFlow(clips.flow)
    broken = {facts.ref for facts in read if facts.error}
    stored, estimated = [], []
    for wanted in flow_pairs(clips, items).values():
        pairs = [pair for pair in wanted if broken.isdisjoint(pair)]
        absent = [pair for pair in pairs if not flow.is_stored(*pair)]
        stored += [pair for pair in pairs if flow.is_stored(*pair)]
        estimated += [absent[position] for position in spread(len(absent), SAMPLE_FLOWS)]
    facts = survey(partial(read_flow, clips), [*stored, *estimated], workers, quiet, f"{findings.domain}: flow")
    judge_flows(findings, facts)
    usable = [each for each in facts if not each.error]
    return {
        "flows": len(facts),
        "stored_flows": len(stored),
        "flow_difference": float(np.mean([each.difference for each in usable])) if usable else None,
        "still_difference": float(np.mean([each.still for each in usable])) if usable else None,
    }
