"""What the facts about a domain's files mean: from listings, frames, labels and flows to findings."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from stcl.commands.check.findings import Notes, many, place, size_text, sizes_text
from stcl.commands.check.survey import FlowFacts, FrameFacts, Size
from stcl.data.base import VideoDataset
from stcl.data.listing import Key, Listing
from stcl.types import FrameRef

DARK = 8.0
"""Mean brightness, of 255, below which a frame is nearly black."""

RARE_SHARE = 1e-4
"""A class of fewer of the pixels is hardly learned."""

FEW_FRAMES = 0.02
"""A class in a smaller part of the labels is seen in hardly any step."""

DISTORTION = 1.05
"""A change of the aspect ratio by a larger factor is worth a remark."""

LISTED_IDS = 40
"""More unknown ids than these are counted, not listed."""

Read = Sequence[tuple[FrameRef, FrameFacts]]
"""Frames with what was found in them."""


def judge_listing(notes: Notes, dataset: VideoDataset, files: Listing) -> None:
    """Names, twins and unmatched files."""
    frames, labels = files.frames, files.labels
    if files.strays:
        strays = sorted({*files.strays})
        what = f"{many(len(strays), 'file')} with a name that breaks the layout."
        notes.stop("stray_name", what, f"Rename or move them. Expected: {dataset.layout}.", strays)
    if files.twins:
        twins = sorted(path for _, path in files.twins)
        notes.stop("second_file", f"{many(len(twins), 'second file')} for a frame or a label.", "Keep one each.", twins)
    if not frames:
        notes.stop("no_frame", "There is no frame.", f"Expected in {dataset.root}: {dataset.layout}.")
    if labels is None or not frames:
        return
    if files.orphans:
        what = f"{len(files.orphans)} of {many(len(labels), 'label file')} without a frame."
        places = [labels[key] for key in files.orphans]
        notes.stop(
            "label_without_frame", what, "Is the download complete? Add the frames or remove the labels.", places
        )
    if not labels or (files.bare and not dataset.sparse):
        what = f"{len(files.bare)} of {many(len(frames), 'frame')} without a label file."
        advice = f"Add the labels, or remove these frames. Expected: {dataset.layout}."
        notes.stop("frame_without_label", what, advice, _images(frames, files.bare))


def judge_runs(notes: Notes, runs: Sequence[Sequence[FrameRef]], span: int) -> None:
    """Gaps in the numbers, and runs that are too short for a clip of ``span`` frames."""
    gaps = [run[0] for before, run in pairwise(runs) if before[0].sequence == run[0].sequence]
    notes.remark(
        "gap",
        f"Frame numbers jump {many(len(gaps), 'time')} within a sequence. Clips do not cross the gaps.",
        "Right where the recording pauses; otherwise look for missing frames before these.",
        [place(ref) for ref in gaps],
        len(gaps),
    )
    short = [run[0] for run in runs if len(run) < span]
    notes.remark(
        "short_sequence",
        f"{len(short)} of {many(len(runs), 'run')} of neighbouring frames shorter than a clip of {span} frames.",
        "Their frames are never frame t. Longer recordings, or a method that looks less far back, would use them.",
        [place(ref) for ref in short],
        len(short),
    )


def judge_frames(notes: Notes, read: Read, size: Size | None, batch_size: int, key: str) -> None:
    """Frames: can they be read, do their sizes fit, are they pictures of a street at all.

    Args:
        notes: where the findings go.
        read: frames and facts.
        size: training size, or None.
        batch_size: clips at once.
        key: of the training size in a configuration.
    """
    _judge_errors(notes, "unreadable_frame", "frame", [(place(ref), facts.error) for ref, facts in read])
    sizes: dict[Size, list[str]] = defaultdict(list)
    unusual: dict[str, list[str]] = defaultdict(list)
    for ref, facts in read:
        if facts.size is not None:
            sizes[facts.size].append(place(ref))
            unusual[facts.unusual].append(place(ref))
    total = sum(map(len, sizes.values()))
    unusual.pop("", None)
    for name, places in sorted(unusual.items()):
        what = f"{len(places)} of {many(total, 'frame')} stored as {name}, read as 8-bit RGB."
        notes.remark("format", what, "Nothing to do if they look right on the page (--out).", places)
    _judge_sizes(notes, sizes, size, batch_size, key)
    dark = [place(ref) for ref, facts in read if facts.size is not None and facts.brightness < DARK]
    what = f"{len(dark)} of {many(total, 'frame')} nearly black (mean below {DARK:g} of 255)."
    notes.remark("dark_frame", what, "They teach nothing. Were they damaged, or is the lens covered?", dark, len(dark))
    first: dict[bytes, FrameRef] = {}
    repeated = [place(r) for r, f in read if f.digest and first.setdefault(f.digest, r) is not r]
    what = f"{len(repeated)} of {many(total, 'frame')} with the very pixels of another one."
    advice = "Is the video padded, or a picture stored under two numbers? There is no motion between such frames."
    notes.remark("repeated_frame", what, advice, repeated, len(repeated))


def _judge_sizes(notes: Notes, sizes: Mapping[Size, list[str]], size: Size | None, batch_size: int, key: str) -> None:
    if len(sizes) > 1:
        rare = min(sizes, key=lambda one: len(sizes[one]))
        what = f"Frames have {len(sizes)} sizes: {sizes_text(sizes)}."
        note = notes.stop if size is None and batch_size > 1 else notes.remark
        note("mixed_sizes", what, f"Set {key}, or make them one size, if they are to be seen alike.", sizes[rare])
    if size is None:
        return
    for (width, height), places in sizes.items():
        factor = (size[0] / size[1]) / (width / height)
        if max(factor, 1 / factor) > DISTORTION:
            kept = [size[0], max(32, round(size[0] * height / width / 8) * 8)]
            shape = f"{size[0]}x{size[1]}: {factor:.2f} times as wide for their height"
            what = f"Frames of {width}x{height} px become {shape}."
            notes.remark("aspect", what, f"To keep their shape, set {key} to {kept}.", places)


def judge_clips(notes: Notes, clips: Iterable[Mapping[int, FrameRef]], read: Read) -> None:
    """Frames of one clip must have one size."""
    sizes = {ref: facts.size for ref, facts in read}
    torn = {}
    for refs in clips:
        found = {sizes[ref]: ref for ref in refs.values() if sizes.get(ref) is not None}
        if len(found) > 1:
            torn[place(next(iter(found.values())))] = True
    what = f"{many(len(torn), 'clip')} with frames of different sizes."
    notes.stop(
        "clip_sizes", what, "Frames of one sequence must have one size: resize or remove them.", [*torn], len(torn)
    )


def judge_labels(notes: Notes, read: Read, dataset: VideoDataset) -> None:
    """Labels: can they be read, do they cover their frames, are their ids known."""
    labelled = [(ref, facts) for ref, facts in read if ref.label is not None]
    _judge_errors(notes, "unreadable_label", "label", [(str(ref.label), facts.label_error) for ref, facts in labelled])
    other = [(r, f) for r, f in labelled if None not in (f.size, f.label_size) and f.label_size != f.size]
    if other:
        label, frame = (size_text(size) for size in (other[0][1].label_size, other[0][1].size))
        what = f"{many(len(other), 'label')} of another size than the frame; the first is {label}, its frame {frame}."
        advice = "Are frames and labels from the same download?"
        notes.stop("label_size", what, advice, [ref.label for ref, _ in other])
    pixels: Counter[int] = Counter()
    for _, facts in labelled:
        pixels.update(facts.unknown)
    files = Counter(raw for _, facts in labelled for raw in facts.unknown)
    if pixels:
        listed = [f"{raw} ({pixels[raw]} px in {many(files[raw], 'file')})" for raw in sorted(pixels)]
        more = f" and {len(listed) - LISTED_IDS} more" if len(listed) > LISTED_IDS else ""
        what = f"Labels hold ids that '{dataset.name}' does not have: {', '.join(listed[:LISTED_IDS])}{more}."
        advice = (
            "Are they labels of another data set, or train ids? An id that is to be ignored belongs into "
            f"{dataset.ids_place}."
        )
        notes.stop("unknown_id", what, advice, [ref.label for ref, facts in labelled if facts.unknown])


def judge_classes(notes: Notes, names: Sequence[str], read: Read, possible: set[str], looked_at: str) -> None:
    """Classes that are missing or rare among labels.

    Args:
        notes: where the findings go.
        names: classes in train-id order.
        read: frames and facts.
        possible: classes that the data set has an id for.
        looked_at: which labels these are, in words.
    """
    counts = [facts.pixels for _, facts in read if facts.pixels is not None]
    if not counts:
        return
    total, classes = np.sum(counts, 0), range(len(names))
    shows = [sum(int(pixels[c] > 0) for pixels in counts) for c in classes]
    share = [int(total[c]) / max(1, int(total.sum())) for c in classes]
    training = notes.domain == "source"
    if not any(shows):
        advice = "Are these labels of this data set, and is space in the configuration the right one?"
        notes.stop("no_class", f"No pixel in {looked_at} has a class of the label space.", advice)
        return
    for kind, chosen, what, advice in (
        (
            "absent_class",
            [c for c in classes if not shows[c]],
            f"Classes that never occur in {looked_at}",
            "A network cannot learn them." if training else "Their IoU cannot be measured.",
        ),
        (
            "rare_class",
            [c for c in classes if 0 < share[c] < RARE_SHARE],
            f"Classes under {RARE_SHARE:.2%} of the pixels in {looked_at}",
            "training.rare_class_sampling shows them more often." if training else "Their IoU depends on few objects.",
        ),
        (
            "few_frames",
            [c for c in classes if 0 < shows[c] < FEW_FRAMES * len(counts) and share[c] >= RARE_SHARE],
            f"Classes in hardly any of {looked_at}",
            "training.rare_class_sampling shows them more often." if training else "Their IoU depends on few scenes.",
        ),
    ):
        told = [_class_text(names[c], possible, share[c], shows[c]) for c in chosen]
        notes.remark(kind, f"{what}: {', '.join(told)}.", advice, count=len(chosen))


def judge_flows(notes: Notes, asked: Sequence[tuple[FrameRef, FrameRef]], facts: Sequence[FlowFacts]) -> None:
    """Flow that is missing or does not belong to the frames, and flow that explains them worse than none."""
    _judge_errors(notes, "flow", "flow", [(place(a), one.error) for (a, _), one in zip(asked, facts, strict=True)])
    good = [one for one in facts if not one.error]
    if not good:
        return
    moved, still = (
        sum(values) / len(good) for values in zip(*((one.difference, one.still) for one in good), strict=True)
    )
    if moved > still:
        notes.remark(
            "flow_misfit",
            f"Flow is worse than none: neighbours differ from the frames by {still:.1%}, warped by {moved:.1%}.",
            "It must lead from each frame to the earlier one, (u, v) in pixels of the frame; see the page (--out).",
            count=len(good),
        )


def _judge_errors(notes: Notes, kind: str, noun: str, errors: Iterable[tuple[str, str]]) -> None:
    """One finding for each kind of message, told apart by their words without paths and numbers."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for where, message in errors:
        if message:
            groups[re.sub(r"\S*/\S+|\w*\d\w*", "#", message)].append((where, message))
    for group in groups.values():
        what = f"{many(len(group), noun)} cannot be read. {'The first: ' if len(group) > 1 else ''}{group[0][1]}"
        if kind == "flow":
            what = f"{many(len(group), noun)} cannot be had. {group[0][1]}"
        advice = {
            "unreadable_frame": "Replace them; a frame that is removed takes its label with it.",
            "unreadable_label": "Replace them with the files of ids.",
            "flow": "Make the flow of these frames anew, or set flow.name to dis.",
        }[kind]
        notes.stop(kind, what, advice, [where for where, _ in group])


def _class_text(name: str, possible: set[str], share: float, frames: int) -> str:
    if name not in possible:
        return f"{name} (the data set has no such class)"
    return f"{name} ({share:.4%} in {many(frames, 'label')})" if frames else name


def _images(frames: Mapping[Key, FrameRef], keys: Iterable[Key]) -> list[str]:
    return [place(frames[key]) for key in keys]
