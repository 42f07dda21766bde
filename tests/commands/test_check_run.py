"""The check of a configuration's data: true where training is, and blind to the labels that training may not see."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stcl.data.base
from stcl.commands.check.run import check_data
from stcl.data.io import read_label, write_image
from stcl.flow import precompute
from stcl.labels import get_space
from stcl.training.domains import training_clips
from stcl.training.networks import build_method
from stcl.training.settings import Settings

SPACE = get_space("synthia_seq-cityscapes_seq")
MakeSettings = Callable[..., Settings]


@pytest.fixture
def copied(streets: Path, tmp_path: Path, make_settings: MakeSettings) -> Callable[..., tuple[Path, Settings]]:
    """``copied(kind, **groups)``: a copy of the streets that may be damaged, and settings of it."""

    def make(kind: str = "stcl", **groups: Any) -> tuple[Path, Settings]:
        root = shutil.copytree(streets, tmp_path / "streets")
        roots = {name: {"root": str(root / name), **groups.pop(name, {})} for name in ("source", "target")}
        return root, make_settings(kind, **roots, **groups)

    return make


@pytest.fixture
def opened_labels(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every label file that is opened."""
    paths: list[Path] = []
    monkeypatch.setattr(stcl.data.base, "read_label", lambda path, *a: paths.append(path) or read_label(path, *a))
    return paths


def check(settings: Settings, **options: Any) -> dict[str, Any]:
    return check_data(settings, workers=0, quiet=True, **options)


def found(record: dict[str, Any], kind: str) -> dict[str, Any]:
    (finding,) = [finding for finding in record["findings"] if finding["kind"] == kind]
    return finding


def kinds(record: dict[str, Any], *severities: str) -> set[tuple[str, str]]:
    return {(one["domain"], one["kind"]) for one in record["findings"] if one["severity"] in severities}


def test_a_healthy_configuration(copied):
    root, settings = copied()
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    record = check(settings)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert (record["ready"], record["measurable"]) == (True, True)
    source, target, evaluation = record["domains"]
    assert [domain["role"] for domain in record["domains"]] == ["source", "target", "evaluation"]
    assert (source["frames"], source["labelled"], source["clips"]) == (6, 6, 4)
    spec = build_method(settings).target_spec
    assert (target["frames"], target["labelled"], target["pixels"]) == (8, None, None)
    assert target["clips"] == len(training_clips(settings, settings.target, spec.without_labels()))
    assert (evaluation["split"], evaluation["labelled"], evaluation["clips"]) == ("val", 2, 2)
    assert sum(source["pixels"].values()) + source["ignored"] == source["read_labels"] * 64 * 32
    assert 0 < source["flow_difference"] < source["still_difference"]
    assert [shown["domain"] for shown in record["labels"]] == ["source"] * 3 + ["evaluation"] * 2
    assert {shown["domain"] for shown in record["flows"]} == {"target"}
    for shown in record["flows"]:
        inside = shown["difference"] < 1
        assert shown["difference"][inside].mean() == pytest.approx(shown["mean"], rel=1e-3)


def test_labels_of_the_target_stay_closed(copied, opened_labels):
    root, settings = copied()
    record = check(settings, full=True)
    allowed = {root / "source", root / "target" / "gtFine" / "val"}
    assert opened_labels
    assert all(allowed & {*path.parents} for path in opened_labels)
    shutil.rmtree(root / "target" / "gtFine" / "train")
    again = check(settings, full=True)
    assert [again[key] for key in ("ready", "findings", "domains")] == [
        record[key] for key in ("ready", "findings", "domains")
    ]


def test_evaluation_on_the_adapted_split_opens_none_either(copied, opened_labels):
    root, settings = copied(evaluation={"split": "train"})
    record = check(settings)
    assert record["ready"]
    assert ("settings", "evaluated_on_target") in kinds(record, "remark")
    assert all(root / "source" in path.parents for path in opened_labels)


def test_a_target_that_no_step_looks_at_cannot_stop_training(copied):
    root, settings = copied("source_only")
    shutil.rmtree(root / "target" / "leftImg8bit_sequence" / "train")
    record = check(settings)
    assert record["ready"]
    assert ("settings", "target_unused") in kinds(record, "remark")
    statistics = copied_method(settings, evaluation_statistics="target")
    assert ("target", "layout") in kinds(check(statistics), "problem")


def copied_method(settings: Settings, **keys: Any) -> Settings:
    return replace(settings, method=replace(settings.method, **keys))


def test_everything_that_is_missing_is_told_at_once(make_settings, tmp_path):
    nowhere = {name: {"root": str(tmp_path / name)} for name in ("source", "target")}
    record = check(make_settings(**nowhere, network={"weights": str(tmp_path / "none.safetensors")}))
    assert kinds(record, "problem") == {("settings", "settings"), ("source", "layout"), ("target", "layout")}
    assert kinds(record, "evaluation") == {("evaluation", "layout")}
    assert (record["ready"], record["measurable"]) == (False, False)


def test_sizes_that_do_not_go_together(make_settings):
    small = {"source": {"size": [32, 32]}}
    assert "32x32 px are smaller than the target's 64x32" in found(check(make_settings(**small)), "pasting")["what"]
    assert check(make_settings("tps", **small))["ready"]  # pastes nothing
    shrunk = make_settings("dacs", method={"preparation": {"rescale": [0.5, 1.0]}})
    assert "32x16 px are smaller" in found(check(shrunk), "pasting")["what"]
    crop = make_settings("stcl", method={"preparation": {"crop": [64, 64]}})
    assert "crop is 64x64 px, but there are clips of 64x32 px" in found(check(crop), "crop")["what"]


def test_a_flow_cache_is_read_and_never_written(copied, tmp_path):
    cache = tmp_path / "cache"
    root, settings = copied(flow={"cache": str(cache)})
    assert check(settings)["ready"]
    assert not [*cache.rglob("*.npz")]
    spec = build_method(settings).source_spec
    precompute(training_clips(settings, settings.source, spec), progress=False)
    source = check(settings)["domains"][0]
    assert (source["flows"], source["stored_flows"]) == (4, 4)
    changed = root / "source" / "clip_0001" / "rgb" / "000001.png"
    write_image(changed, np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8))
    record = check(settings)
    stale = found(record, "flow")
    assert (stale["severity"], stale["domain"], stale["count"]) == ("problem", "source", 2)
    assert "belongs to other frames" in stale["what"]
    assert not record["ready"]


def test_frames_that_domains_share(copied):
    root, settings = copied()
    frames = root / "target" / "leftImg8bit_sequence"
    ours, theirs = (sorted((frames / split).rglob("*_000019_leftImg8bit.png")) for split in ("train", "val"))
    shutil.copy(ours[0], theirs[1])
    shared = found(check(settings), "shared_frame")
    assert (shared["severity"], shared["count"], shared["places"]) == ("remark", 1, (str(theirs[1]),))
    assert "target and evaluation" in shared["what"]
