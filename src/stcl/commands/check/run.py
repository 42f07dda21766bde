"""Is the data right? What the settings' data sets hold, and what would stop training or evaluation before they begin.

No label of the target that is adapted to is opened: its folder of labels is not even looked at. Evaluation opens
labels, so those of its split are opened here, too, unless it is the split that is adapted to.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from typing import Any

from stcl.commands.check.domain import DomainCheck, DomainRequest, DomainSummary, check_domain
from stcl.commands.check.exhibits import flow_exhibits, label_exhibits
from stcl.commands.check.findings import Notes, many, place, size_text
from stcl.commands.check.survey import Size
from stcl.commands.check.symptoms import DARK
from stcl.data import ClipDataset, VideoDataset
from stcl.errors import StclError
from stcl.files.paths import real_path
from stcl.flow.reading import ReadingFlow
from stcl.methods import AdaptationMethod
from stcl.models.views import GRID_PX
from stcl.training.domains import evaluation_clips, open_dataset, training_clips
from stcl.training.networks import build_method
from stcl.training.settings import DomainSettings, Settings
from stcl.types import ClipSpec, FrameRef

SCHEMA = 1

EXHIBITS = 3
"""Frames of a domain that are shown."""

BY_INTEREST = ("target", "evaluation", "source")
"""Flow is shown for the first of these domains that has any."""


def check_data(
    settings: Settings, full: bool = False, workers: int | None = None, quiet: bool = False
) -> dict[str, Any]:
    """Look at source, target and evaluation, collect every mistake, and say whether training can start.

    Args:
        settings: of the run that is to be.
        full: read all frames and labels instead of a sample of about 100 frames a domain.
        workers: processes that read; None takes one a core.
        quiet: no progress bars.

    Returns:
        Plain data and pictures: ``ready`` (training can start), ``measurable`` (so can evaluation), ``findings`` (see
        :class:`stcl.commands.check.findings.Finding`), ``domains``
        (:class:`stcl.commands.check.domain.DomainSummary`), ``labels`` and ``flows`` (pictures ``(H, W, 3)`` uint8,
        train ids ``(H, W)``, errors ``(H, W)`` 0..1), ``classes``, ``title``, ``full``, ``seconds``.
    """
    started = time.monotonic()
    workers = (os.cpu_count() or 1) if workers is None else workers
    notes = Notes("settings", "problem")
    method = _open_method(settings, notes)
    checks: dict[str, DomainCheck] = {}
    for role, make in (("source", _source), ("target", _target), ("evaluation", _evaluation)):
        try:
            request = make(settings, method, notes)
        except StclError as error:  # of a root that is missing, say
            own = Notes(role, "evaluation" if role == "evaluation" else "problem")
            own.stop("layout", str(error), "Correct root and split, or bring the data (docs/data.md).")
            checks[role] = DomainCheck(_nothing(settings, role), own.found, None, [])
            continue
        if request is not None:
            checks[role] = check_domain(request, full, workers, quiet)
    if "source" in checks and "target" in checks:
        _check_pasting(settings, method, checks, notes)
    _check_shared(settings, checks, notes)
    findings = [*notes.found, *(finding for check in checks.values() for finding in check.findings)]
    told = {finding.what for finding in findings if (finding.domain, finding.severity) == ("target", "remark")}
    findings = [one for one in findings if one.domain != "evaluation" or one.what not in told]
    return {
        "schema": SCHEMA,
        "title": settings.title,
        "method": settings.as_dict()["method"]["name"],
        "space": settings.space.name,
        "classes": list(settings.space.names),
        "flow": settings.flow.name,
        "full": full,
        "ready": not any(finding.severity == "problem" for finding in findings),
        "measurable": not any(finding.severity == "evaluation" for finding in findings),
        "findings": [asdict(finding) for finding in findings],
        "domains": [asdict(check.summary) for check in checks.values()],
        "labels": [shown for check in checks.values() for shown in label_exhibits(check, EXHIBITS)],
        "flows": next(
            filter(None, (flow_exhibits(checks[role], EXHIBITS) for role in BY_INTEREST if role in checks)), []
        ),
        "seconds": round(time.monotonic() - started, 1),
    }


# ---- from settings to requests ----


def _open_method(settings: Settings, notes: Notes) -> AdaptationMethod:
    """The method, for the clips that it wants; with random weights where its own cannot be had.

    Published weights by name are not fetched for this.
    """
    bare = replace(settings, network=replace(settings.network, weights=None))
    if (settings.network.weights or "").startswith("pretrained:"):
        return build_method(bare)
    try:
        return build_method(settings)
    except StclError as error:
        method = build_method(bare)  # where this fails, too, it is the first message
        notes.stop("settings", str(error), "Correct the configuration.")
        return method


def _source(settings: Settings, method: AdaptationMethod, notes: Notes) -> DomainRequest:
    return _training(settings, "source", settings.source, method.source_spec, method)


def _target(settings: Settings, method: AdaptationMethod, notes: Notes) -> DomainRequest | None:
    """The target without labels, whatever there is of them; None where training never looks at it."""
    spec = method.target_spec
    if spec is None and method.evaluation_statistics != "target":
        what = f"Method '{settings.as_dict()['method']['name']}' looks at no target frame, so they were not checked."
        notes.remark("target_unused", what, "To check them, name a method that adapts, e.g. --method.name stcl.")
        return None
    spec = ClipSpec(frames=(0,)) if spec is None else spec.without_labels()
    return _training(settings, "target", settings.target, spec, method)


def _training(
    settings: Settings, role: str, domain: DomainSettings, spec: ClipSpec, method: AdaptationMethod
) -> DomainRequest:
    dataset = open_dataset(domain)

    def calibration(index: list[FrameRef]) -> ClipDataset:
        clips = training_clips(settings, domain, ClipSpec(frames=(0,)), index)
        clips.thin(settings.training.calibration_clips)
        return clips

    return _request(
        settings,
        role,
        dataset,
        lambda index: training_clips(settings, domain, spec, index),
        bool(spec.labels),
        settings.training.batch_size,
        calibration if method.evaluation_statistics == role else None,
    )


def _evaluation(settings: Settings, method: AdaptationMethod, notes: Notes) -> DomainRequest | None:
    """The labelled frames that are measured on; None where they are those that are adapted to."""
    target, evaluation = settings.target, settings.evaluation
    dataset = open_dataset(target, evaluation.split, evaluation.root)
    adapted = real_path(target.root)
    if not settings.oracle and (real_path(dataset.root), dataset.split) == (adapted, target.split):
        what = f"Evaluation measures on '{dataset.split}', the very frames that are adapted to."
        notes.remark("evaluated_on_target", what, "Their labels were not opened here. Better take another split.")
        return None
    clips = partial(evaluation_clips, settings, None, None)
    return _request(settings, "evaluation", dataset, clips, True, evaluation.batch_size, None)


def _request(
    settings: Settings,
    role: str,
    dataset: VideoDataset,
    open_clips: Callable[[list[FrameRef]], ClipDataset],
    with_labels: bool,
    batch_size: int,
    calibration: Callable[[list[FrameRef]], ClipDataset] | None,
) -> DomainRequest:
    def reading(index: list[FrameRef]) -> ClipDataset:
        clips = open_clips(index)
        clips.flow = None if clips.flow is None else ReadingFlow(clips.flow)
        return clips

    return DomainRequest(role, dataset, reading, with_labels, settings.space, batch_size, calibration)


def _nothing(settings: Settings, role: str) -> DomainSummary:
    """The summary of a domain that cannot be opened."""
    domain = settings.source if role == "source" else settings.target
    split, root = domain.split, domain.root
    if role == "evaluation":
        split, root = settings.evaluation.split, settings.evaluation.root or root
    return DomainSummary(role, domain.name, split, root)


# ---- both domains together ----


def _check_pasting(settings: Settings, method: AdaptationMethod, checks: dict[str, DomainCheck], notes: Notes) -> None:
    """Clips must hold the training crop and, where patches are pasted, the source's windows of the target's size."""
    source, target = (_clip_sizes(checks[role]) for role in ("source", "target"))
    shrink, crop = method.preparation.rescale[0], method.preparation.crop
    if method.preparation.rescale != (1.0, 1.0):
        source = [(min(w, _on_grid(w * shrink)), min(h, _on_grid(h * shrink))) for w, h in source]
    if crop is not None:
        small = [size for size in [*source, *target] if size[0] < crop[0] or size[1] < crop[1]]
        if small:
            what = f"method.preparation.crop is {size_text(crop)} px, but there are clips of {size_text(small[0])} px."
            notes.stop("crop", what, "Make the crop smaller, or the sizes larger.")
    elif method.pastes and source and target:
        smallest = min(w for w, _ in source), min(h for _, h in source)
        largest = max(w for w, _ in target), max(h for _, h in target)
        if smallest[0] < largest[0] or smallest[1] < largest[1]:
            what = (
                f"Source clips of {size_text(smallest)} px are smaller than the target's {size_text(largest)} px, so "
                "patches cannot be pasted."
            )
            notes.stop("pasting", what, "Make source.size at least target.size, also after method.preparation.rescale.")


def _clip_sizes(check: DomainCheck) -> list[Size]:
    """Sizes that clips of a domain have when they come from the loader."""
    if check.summary.size is not None:
        return [check.summary.size]
    return sorted({facts.size for _, facts in check.read if facts.size is not None})


def _on_grid(side: float) -> int:
    return max(GRID_PX, round(side / GRID_PX) * GRID_PX)


def _check_shared(settings: Settings, checks: dict[str, DomainCheck], notes: Notes) -> None:
    """Frames that two domains have in common, among those that were read."""
    seen = {
        role: {facts.digest: place(ref) for ref, facts in check.read if facts.size and facts.brightness >= DARK}
        for role, check in checks.items()
        if role != "evaluation" or check.summary.labelled  # without labels nothing is measured on them
    }
    for one, other in combinations(seen, 2):
        shared = [] if settings.oracle and one == "source" else sorted(seen[one].keys() & seen[other].keys())
        what = f"{many(len(shared), 'frame')} of {one} and {other} with the very same pixels."
        advice = (
            "Frames that are measured on must not be trained on: take another split."
            if other == "evaluation"
            else "Are both the same recording? Then there is nothing to adapt to."
        )
        notes.remark("shared_frame", what, advice, [seen[other][digest] for digest in shared], len(shared))
