"""Is the data right? What the settings' data sets hold, and what would stop training or evaluation before they begin.

Each of source, target and evaluation is a domain that is checked by itself (:mod:`stcl.commands.check.domain`); the
record has what is in it, the findings and some pictures.

No label of the target that is adapted to is opened: its folder of labels is not even looked at. Evaluation opens
labels, so those of its split are opened here, too, unless it is the split that is adapted to.
"""

import os
import time
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from typing import Any

from stcl.commands.check.domain import Domain, DomainCheck, DomainSummary, check_domain, spread
from stcl.commands.check.findings import DARK, Findings, many, size_text
from stcl.commands.check.survey import Size, flow_pairs, read_flow
from stcl.data import ClipDataset
from stcl.errors import StclError
from stcl.files.paths import real_path
from stcl.methods import AdaptationMethod
from stcl.models.views import GRID_PX
from stcl.training.domains import evaluation_clips, open_dataset, training_clips
from stcl.training.networks import build_method
from stcl.training.settings import DomainSettings, Settings
from stcl.types import ClipSpec, FrameRef

SCHEMA = 1

PICTURES = 3  # frames of a domain that are shown
FLOW_ROLES = ("target", "evaluation", "source")  # flow is shown for the first of these domains that has any


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
    common = Findings("settings")
    method = _open_method(settings, common)
    target, evaluation = settings.target, settings.evaluation
    measured = replace(target, split=evaluation.split or target.split, root=evaluation.root or target.root)
    checks: dict[str, DomainCheck] = {}
    for role, origin in (("source", settings.source), ("target", target), ("evaluation", measured)):
        try:
            domain = _open_domain(settings, role, origin, method, common)
        except StclError as error:  # of a root that is missing, say
            refused = Findings(role)
            refused.stop("layout", str(error), "Correct root and split, or bring the data (docs/data.md).")
            checks[role] = DomainCheck(DomainSummary(role, origin.name, origin.split, origin.root), refused.items)
            continue
        if domain is not None:
            checks[role] = check_domain(domain, full, workers, quiet)
    if "source" in checks and "target" in checks:
        _check_pasting(method, checks, common)
    _check_shared(settings, checks, common)
    findings = [*common.items, *(finding for check in checks.values() for finding in check.findings)]
    # frames of one recording are odd in one way: evaluation does not repeat what is remarked on the target
    known = {finding.what for finding in findings if (finding.domain, finding.severity) == ("target", "remark")}
    findings = [finding for finding in findings if finding.domain != "evaluation" or finding.what not in known]
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
        "labels": [picture for check in checks.values() for picture in _label_pictures(check)],
        "flows": next(filter(None, (_flow_pictures(checks[role]) for role in FLOW_ROLES if role in checks)), []),
        "seconds": round(time.monotonic() - started, 1),
    }


# ---- from settings to domains ----


def _open_method(settings: Settings, findings: Findings) -> AdaptationMethod:
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
        findings.stop("settings", str(error), "Correct the configuration.")
        return method


def _open_domain(
    settings: Settings, role: str, origin: DomainSettings, method: AdaptationMethod, findings: Findings
) -> Domain | None:
    """The domain as training or evaluation looks at it: the target without labels; None where nobody looks at it."""
    if role == "evaluation":
        dataset, target = open_dataset(origin), settings.target
        if not settings.oracle and (real_path(dataset.root), dataset.split) == (real_path(target.root), target.split):
            what = f"Evaluation measures on '{dataset.split}', the very frames that are adapted to."
            advice = "Their labels were not opened here. Better take another split."
            findings.remark("evaluated_on_target", what, advice)
            return None
        measured = partial(evaluation_clips, settings, None, None)
        return Domain(role, dataset, measured, True, settings.space, settings.evaluation.batch_size)
    spec = method.source_spec
    if role == "target":
        if method.target_spec is None and method.evaluation_statistics != "target":
            name = settings.as_dict()["method"]["name"]
            what = f"Method '{name}' looks at no target frame, so they were not checked."
            findings.remark("target_unused", what, "To check them, name a method that adapts, e.g. --method.name stcl.")
            return None
        spec = (method.target_spec or ClipSpec(frames=(0,))).without_labels()

    def calibration(index: list[FrameRef]) -> ClipDataset:
        clips = training_clips(settings, origin, ClipSpec(frames=(0,)), index)
        clips.thin(settings.training.calibration_clips)
        return clips

    trained = partial(training_clips, settings, origin, spec)
    single = calibration if method.evaluation_statistics == role else None
    batch_size, labels = settings.training.batch_size, bool(spec.labels)
    return Domain(role, open_dataset(origin), trained, labels, settings.space, batch_size, single)


# ---- both domains together ----


def _check_pasting(method: AdaptationMethod, checks: dict[str, DomainCheck], findings: Findings) -> None:
    """Clips must hold the training crop and, where patches are pasted, the source's windows of the target's size."""
    source, target = (_clip_sizes(checks[role]) for role in ("source", "target"))
    shrink, crop = method.preparation.rescale[0], method.preparation.crop
    if method.preparation.rescale != (1.0, 1.0):

        def shrunk(side: int) -> int:
            return min(side, max(GRID_PX, round(side * shrink / GRID_PX) * GRID_PX))

        source = [(shrunk(w), shrunk(h)) for w, h in source]
    if crop is not None:
        small = [size for size in [*source, *target] if size[0] < crop[0] or size[1] < crop[1]]
        if small:
            what = f"method.preparation.crop is {size_text(crop)} px, but there are clips of {size_text(small[0])} px."
            findings.stop("crop", what, "Make the crop smaller, or the sizes larger.")
    elif method.pastes and source and target:
        smallest = min(w for w, _ in source), min(h for _, h in source)
        largest = max(w for w, _ in target), max(h for _, h in target)
        if smallest[0] < largest[0] or smallest[1] < largest[1]:
            what = (
                f"Source clips of {size_text(smallest)} px are smaller than the target's {size_text(largest)} px, so "
                "patches cannot be pasted."
            )
            advice = "Make source.size at least target.size, also after method.preparation.rescale."
            findings.stop("pasting", what, advice)


def _clip_sizes(check: DomainCheck) -> list[Size]:
    """Sizes that clips of a domain have when they come from the loader."""
    if check.summary.size is not None:
        return [check.summary.size]
    return sorted({facts.size for facts in check.read if facts.size is not None})


def _check_shared(settings: Settings, checks: dict[str, DomainCheck], findings: Findings) -> None:
    """Frames that two domains have in common, among those that were read."""
    frames = {
        role: {facts.digest: facts.ref for facts in check.read if facts.size and facts.brightness >= DARK}
        for role, check in checks.items()
        if role != "evaluation" or check.summary.labelled  # without labels nothing is measured on them
    }
    for first, second in combinations(frames, 2):
        if settings.oracle and first == "source":
            continue
        shared = [frames[second][digest] for digest in sorted(frames[first].keys() & frames[second].keys())]
        what = f"{many(len(shared), 'frame')} of {first} and {second} with the very same pixels."
        advice = (
            "Frames that are measured on must not be trained on: take another split."
            if second == "evaluation"
            else "Are both the same recording? Then there is nothing to adapt to."
        )
        findings.remark("shared_frame", what, advice, shared)


# ---- pictures ----


def _label_pictures(check: DomainCheck) -> list[dict[str, Any]]:
    """Evenly spread frames ``(H, W, 3)`` uint8 RGB with their train ids ``(H, W)``, as they are on disk."""
    if check.clips is None:
        return []
    dataset, space = check.clips.dataset, check.clips.space
    refs = [facts.ref for facts in check.read if facts.pixels is not None and facts.size == facts.label_size]
    return [
        {
            "domain": check.summary.role,
            "name": ref.name,
            "frame": dataset.read_frame(ref),
            "label": dataset.read_label(ref, space),
        }
        for ref in (refs[position] for position in spread(len(refs), PICTURES))
    ]


def _flow_pictures(check: DomainCheck) -> list[dict[str, Any]]:
    """Evenly spread frames with the neighbour that flow warps to them, see :func:`read_flow`."""
    if check.clips is None or check.clips.flow is None:
        return []
    broken = {facts.ref for facts in check.read if facts.error}
    wanted = next(iter(flow_pairs(check.clips, range(len(check.clips))).values()))
    pairs = [pair for pair in wanted if broken.isdisjoint(pair)]
    flows = [read_flow(check.clips, pairs[position], pictures=True) for position in spread(len(pairs), PICTURES)]
    return [
        {
            "domain": check.summary.role,
            "name": flow.a.name,
            "previous": flow.b.name,
            **flow.pictures,
            "mean": flow.difference,
            "still": flow.still,
        }
        for flow in flows
        if flow.pictures
    ]
