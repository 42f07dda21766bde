"""What the facts about a domain's files mean: each kind of mistake or oddity once, with its files and what to do."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from stcl.commands.check.survey import FlowFacts, FrameFacts, Size
from stcl.data.base import VideoDataset
from stcl.data.clips import ClipDataset
from stcl.data.listing import Listing
from stcl.labels import LabelSpace
from stcl.methods.settings import nearest_frame_size
from stcl.types import FrameRef

DARK = 8.0  # mean brightness, of 255, below which a frame is nearly black
RARE_SHARE = 1e-4  # a class with a smaller share of the pixels is hardly learned
FEW_FRAMES = 0.02  # a class in a smaller part of the labels is seen in hardly any step
DISTORTION = 1.05  # a change of the aspect ratio by a larger factor is worth a remark
_SAMPLING = "training.rare_class_sampling shows them more often."

CLASS_REMARKS = {
    "absent_class": ("Classes that never occur in", "A network cannot learn them.", "Their IoU cannot be measured."),
    "rare_class": (f"Classes under {RARE_SHARE:.2%} of the pixels in", _SAMPLING, "Their IoU depends on few objects."),
    "few_frames": ("Classes in hardly any of", _SAMPLING, "Their IoU depends on few scenes."),
}
"""By kind: what is odd, and what it means for training and for evaluation."""

LISTED_IDS = 40  # more unknown ids than these are counted, not listed

Severity = Literal["problem", "evaluation", "remark"]
"""``problem``: training cannot start or will stop; ``evaluation``: training can, `stcl evaluate` cannot."""


@dataclass(frozen=True)
class Finding:
    """One kind of mistake or oddity in one domain."""

    domain: str  # source, target, evaluation or settings
    kind: str  # a word for programs, e.g. unknown_id
    severity: Severity
    what: str  # a sentence or two
    advice: str  # what to do next
    count: int = 1  # how many files, frames or clips it holds for
    places: tuple[str, ...] = ()  # their paths, in order


Files = Sequence[FrameRef | Path] | None
"""What a finding holds for; None where it is about no single file."""


@dataclass
class Findings:
    """Findings of one domain as they come; one that would hold for no file at all is left out."""

    domain: str
    items: list[Finding] = field(default_factory=list)

    def stop(self, kind: str, what: str, advice: str, files: Files = None) -> None:
        """Note what stops whoever uses the domain: evaluation or training."""
        self._add("evaluation" if self.domain == "evaluation" else "problem", kind, what, advice, files, 1)

    def remark(self, kind: str, what: str, advice: str, files: Files = None, count: int = 1) -> None:
        """Note what is odd; ``count`` says how often where there are no files to count."""
        self._add("remark", kind, what, advice, files, count)

    def _add(self, severity: Severity, kind: str, what: str, advice: str, files: Files, count: int) -> None:
        paths = tuple(map(path_text, files or ()))
        if files is None or paths:
            self.items.append(Finding(self.domain, kind, severity, what, advice, len(paths) or count, paths))


def path_text(file: FrameRef | Path) -> str:
    """Where a file, or a frame of a video, lies."""
    if isinstance(file, Path):
        return str(file)
    return str(file.image) if file.frame is None else f"{file.image}, frame {file.frame}"


def many(count: int, noun: str) -> str:
    """``1 frame``, ``2 frames``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size_text(size: Size) -> str:
    """``1280x760``."""
    return f"{size[0]}x{size[1]}"


def judge_listing(findings: Findings, dataset: VideoDataset, files: Listing) -> None:
    """Names, second files for one frame, and frames and labels that do not match."""
    frames, labels = files.frames, files.labels
    strays = sorted({*files.strays})
    what = f"{many(len(strays), 'file')} with a name that breaks the layout."
    findings.stop("stray_name", what, f"Rename or move them. Expected: {dataset.layout}.", strays)
    what = f"{many(len(files.twins), 'second file')} for a frame or a label."
    findings.stop("second_file", what, "Keep one each.", sorted(path for _, path in files.twins))
    if not frames:
        findings.stop("no_frame", "There is no frame.", f"Expected in {dataset.root}: {dataset.layout}.")
    if labels is None or not frames:
        return
    what = f"{len(files.orphans)} of {many(len(labels), 'label file')} without a frame."
    advice = "Is the download complete? Add the frames or remove the labels."
    findings.stop("label_without_frame", what, advice, [labels[key] for key in files.orphans])
    if not labels or not dataset.sparse:
        what = f"{len(files.bare)} of {many(len(frames), 'frame')} without a label file."
        advice = f"Add the labels, or remove these frames. Expected: {dataset.layout}."
        findings.stop("frame_without_label", what, advice, [frames[key] for key in files.bare])


def judge_runs(findings: Findings, clips: ClipDataset) -> None:
    """Gaps in the frame numbers, and runs of frames that are too short for a clip."""
    back = 0 if clips.every_frame else min(clips.spec.frames)
    span = max(0, *clips.spec.frames) - min(0, back) + 1
    gaps = [run[0] for before, run in pairwise(clips.runs) if before[0].sequence == run[0].sequence]
    what = f"Frame numbers jump {many(len(gaps), 'time')} within a sequence. Clips do not cross the gaps."
    advice = "Right where the recording pauses; otherwise look for missing frames before these."
    findings.remark("gap", what, advice, gaps)
    short = [run[0] for run in clips.runs if len(run) < span]
    runs = many(len(clips.runs), "run")
    what = f"{len(short)} of {runs} of neighbouring frames shorter than a clip of {span} frames."
    advice = "Their frames are never frame t. Longer recordings, or a method that looks less far back, would use them."
    findings.remark("short_sequence", what, advice, short)


def judge_frames(findings: Findings, read: Sequence[FrameFacts], size: Size | None, batch_size: int) -> None:
    """Frames: can they be read, do their sizes fit the training ``size``, are they pictures of a street at all."""
    _judge_errors(findings, "unreadable_frame", "frame", [(facts.ref, facts.error) for facts in read])
    sizes: dict[Size, list[FrameRef]] = defaultdict(list)
    unusual: dict[str, list[FrameRef]] = defaultdict(list)
    first: dict[bytes, FrameRef] = {}
    dark, repeated = [], []
    for facts in read:
        if facts.size is None:
            continue
        sizes[facts.size].append(facts.ref)
        if facts.unusual:
            unusual[facts.unusual].append(facts.ref)
        if facts.brightness < DARK:
            dark.append(facts.ref)
        if first.setdefault(facts.digest, facts.ref) is not facts.ref:
            repeated.append(facts.ref)
    frames = many(sum(map(len, sizes.values())), "frame")
    for name, refs in sorted(unusual.items()):
        what = f"{len(refs)} of {frames} stored as {name}, read as 8-bit RGB."
        findings.remark("format", what, "Nothing to do if they look right on the page (--out).", refs)
    _judge_sizes(findings, sizes, size, batch_size)
    what = f"{len(dark)} of {frames} nearly black (mean below {DARK:g} of 255)."
    findings.remark("dark_frame", what, "They teach nothing. Were they damaged, or is the lens covered?", dark)
    what = f"{len(repeated)} of {frames} with the very pixels of another one."
    advice = "Is the video padded, or a picture stored under two numbers? There is no motion between such frames."
    findings.remark("repeated_frame", what, advice, repeated)


def _judge_sizes(findings: Findings, sizes: dict[Size, list[FrameRef]], size: Size | None, batch_size: int) -> None:
    key = "source.size" if findings.domain == "source" else "target.size"
    if len(sizes) > 1:
        order = sorted(sizes, key=lambda each: -len(sizes[each]))
        listed = ", ".join(f"{size_text(each)} ({len(sizes[each])})" for each in order)
        rare = min(sizes, key=lambda each: len(sizes[each]))
        note = findings.stop if size is None and batch_size > 1 else findings.remark
        advice = f"Set {key}, or make them one size, if they are to be seen alike."
        note("mixed_sizes", f"Frames have {len(sizes)} sizes: {listed}.", advice, sizes[rare])
    if size is None:
        return
    for (width, height), refs in sizes.items():
        factor = (size[0] / size[1]) / (width / height)
        if max(factor, 1 / factor) > DISTORTION:
            kept = [*nearest_frame_size((size[0], size[0] * height / width))]
            shape = f"{size_text(size)}: {factor:.2f} times as wide for their height"
            what = f"Frames of {width}x{height} px become {shape}."
            findings.remark("aspect", what, f"To keep their shape, set {key} to {kept}.", refs)


def judge_clips(findings: Findings, clips: ClipDataset, items: Iterable[int], read: Sequence[FrameFacts]) -> None:
    """Frames of one clip must have one size."""
    sizes = {facts.ref: facts.size for facts in read if facts.size is not None}
    torn = []
    for item in items:
        refs = [ref for ref in clips.refs(item).values() if ref in sizes]
        if len({sizes[ref] for ref in refs}) > 1:
            torn.append(refs[0])
    what = f"{many(len(torn), 'clip')} with frames of different sizes."
    findings.stop("clip_sizes", what, "Frames of one sequence must have one size: resize or remove them.", torn)


def judge_labels(findings: Findings, read: Sequence[FrameFacts], dataset: VideoDataset) -> None:
    """Labels: can they be read, do they cover their frames, are their ids known."""
    labelled = [(facts.ref.label, facts) for facts in read if facts.ref.label is not None]
    _judge_errors(findings, "unreadable_label", "label", [(label, facts.label_error) for label, facts in labelled])
    unequal = [
        (label, size_text(facts.label_size), size_text(facts.size))
        for label, facts in labelled
        if facts.size is not None and facts.label_size is not None and facts.label_size != facts.size
    ]
    if unequal:
        _, label_size, size = unequal[0]
        labels = f"{many(len(unequal), 'label')} of another size than the frame"
        what = f"{labels}; the first is {label_size}, its frame {size}."
        advice = "Are frames and labels from the same download?"
        findings.stop("label_size", what, advice, [label for label, *_ in unequal])
    pixels: Counter[int] = Counter()
    for _, facts in labelled:
        pixels.update(facts.unknown)
    if pixels:
        files = Counter(raw for _, facts in labelled for raw in facts.unknown)
        listed = [f"{raw} ({pixels[raw]} px in {many(files[raw], 'file')})" for raw in sorted(pixels)]
        more = f" and {len(listed) - LISTED_IDS} more" if len(listed) > LISTED_IDS else ""
        what = f"Labels hold ids that '{dataset.name}' does not have: {', '.join(listed[:LISTED_IDS])}{more}."
        advice = (
            "Are they labels of another data set, or train ids? An id that is to be ignored belongs into "
            f"{dataset.ids_place}."
        )
        findings.stop("unknown_id", what, advice, [label for label, facts in labelled if facts.unknown])


def judge_classes(
    findings: Findings, read: Sequence[FrameFacts], dataset: VideoDataset, space: LabelSpace, labels: str
) -> None:
    """Classes that are missing or rare in the labels that were read, which ``labels`` names in words."""
    counts = [facts.pixels for facts in read if facts.pixels is not None]
    if not counts:
        return
    frames = np.sum([pixels[:-1] > 0 for pixels in counts], 0)  # of each class
    shares = np.sum(counts, 0) / max(1, np.sum(counts))
    if not frames.any():
        advice = "Are these labels of this data set, and is space in the configuration the right one?"
        findings.stop("no_class", f"No pixel in {labels} has a class of the label space.", advice)
        return
    possible = {space.merges.get(name, name) for name in dataset.raw_names.values()}
    groups: dict[str, list[str]] = defaultdict(list)
    for name, count, share in zip(space.names, frames.tolist(), shares.tolist(), strict=False):
        if not count:
            note = "" if name in possible else " (the data set has no such class)"
            groups["absent_class"].append(name + note)
        elif share < RARE_SHARE or count < FEW_FRAMES * len(counts):
            kind = "rare_class" if share < RARE_SHARE else "few_frames"
            groups[kind].append(f"{name} ({share:.4%} in {many(count, 'label')})")
    for kind, (what, for_training, for_measuring) in CLASS_REMARKS.items():
        advice = for_training if findings.domain == "source" else for_measuring
        text = f"{what} {labels}: {', '.join(groups[kind])}."
        if groups[kind]:
            findings.remark(kind, text, advice, count=len(groups[kind]))


def judge_flows(findings: Findings, flows: Sequence[FlowFacts]) -> None:
    """Flow that is missing or does not belong to the frames, and flow that explains them worse than none."""
    _judge_errors(findings, "flow", "flow", [(facts.a, facts.error) for facts in flows])
    usable = [facts for facts in flows if not facts.error]
    moved, still = (
        sum(getattr(facts, key) for facts in usable) / max(1, len(usable)) for key in ("difference", "still")
    )
    if moved > still:
        what = f"Flow is worse than none: neighbours differ from the frames by {still:.1%}, warped by {moved:.1%}."
        advice = "It must lead from each frame to the earlier one, (u, v) in pixels of the frame; see the page (--out)."
        findings.remark("flow_misfit", what, advice, count=len(usable))


def _judge_errors(findings: Findings, kind: str, noun: str, errors: Iterable[tuple[FrameRef | Path, str]]) -> None:
    """One finding for each kind of message; messages are of one kind if they differ in paths and numbers only."""
    groups: dict[str, list[tuple[FrameRef | Path, str]]] = defaultdict(list)
    for file, message in errors:
        if message:
            groups[re.sub(r"\S*/\S+|\w*\d\w*", "#", message)].append((file, message))
    for group in groups.values():
        what = f"{many(len(group), noun)} cannot be read. {'The first: ' if len(group) > 1 else ''}{group[0][1]}"
        if kind == "flow":
            what = f"{many(len(group), noun)} cannot be had. {group[0][1]}"
        advice = {
            "unreadable_frame": "Replace them; a frame that is removed takes its label with it.",
            "unreadable_label": "Replace them with the files of ids.",
            "flow": "Make the flow of these frames anew, or set flow.name to dis.",
        }[kind]
        findings.stop(kind, what, advice, [file for file, _ in group])
