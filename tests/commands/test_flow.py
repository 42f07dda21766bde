"""The flow cache is filled with exactly what runs ask for, once, in parts, and after a kill."""

import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stcl
from stcl.cli import main
from stcl.commands.flow.run import FramePairs, asked_clips
from stcl.data import get_dataset
from stcl.errors import DataError, SettingError
from stcl.files.names import neighbour, neighbour_of
from stcl.flow import CachedFlow
from stcl.flow.dis import DisFlow
from stcl.flow.files import FilesFlow
from stcl.training.domains import DomainData, evaluation_clips, make_flow
from stcl.training.networks import build_method
from stcl.training.settings import FlowSettings, Settings
from stcl.types import ClipSpec

BACK = {"teacher": {"flow_consistency": True}}


@pytest.fixture(scope="module")
def settings(make_settings) -> Settings:
    return make_settings("stcl")


def with_flow(settings: Settings, **changes: Any) -> Settings:
    return replace(settings, flow=replace(settings.flow, **changes))


def files(cache: Path) -> dict[Path, int]:
    """Cache files with the time of their writing."""
    return {path.relative_to(cache): path.stat().st_mtime_ns for path in sorted(cache.rglob("*.npz"))}


@pytest.mark.parametrize(
    ("kind", "method", "counts"),
    # source: 2 clips of 3 frames. target: 2 of 4 frames, of which t needs two before it. evaluation: one label a clip
    [("stcl", {}, (4, 6, 2)), ("tps", BACK, (4, 10, 2)), ("source_only", {}, (4, 2))],
)
def test_it_computes_what_a_run_asks_for_and_nothing_else(make_settings, tmp_path, kind, method, counts, monkeypatch):
    settings = make_settings(kind, method=method, flow={"cache": str(tmp_path)})
    filled = stcl.fill_flow_cache(settings, quiet=True)
    assert tuple(each.pairs for each in filled) == tuple(each.written for each in filled) == counts
    before = files(tmp_path)
    assert len(before) == sum(counts)
    asked = set()
    read = CachedFlow._read
    monkeypatch.setattr(CachedFlow, "_read", lambda self, path, *rest: [asked.add(path), read(self, path, *rest)][1])
    built = build_method(settings)
    data = DomainData(settings, built.source_spec, built.target_spec)
    for clips in (data.source, data.target, evaluation_clips(settings)):
        for item in range(0 if clips is None else len(clips)):
            clips[item]
    assert files(tmp_path) == before  # nothing was missing
    assert {path.relative_to(tmp_path) for path in asked} == set(before)  # nothing is superfluous


def test_what_is_there_is_neither_read_nor_computed(settings, tmp_path, monkeypatch):
    settings = with_flow(settings, cache=str(tmp_path))
    stcl.fill_flow_cache(settings, quiet=True)
    before = files(tmp_path)
    lost = tmp_path / [*before][3]
    lost.unlink()
    looked = []
    read = type(asked_clips(settings)["source"].dataset).read_frame
    for name in ("synthia_seq", "cityscapes_seq"):
        monkeypatch.setattr(
            get_dataset(name), "read_frame", lambda self, ref: [looked.append(ref.name), read(self, ref)][1]
        )
    filled = stcl.fill_flow_cache(settings, quiet=True)
    assert sum(each.written for each in filled) == 1 and len(looked) == 2
    after = files(tmp_path)
    assert {path for path in after if after[path] != before[path]} == {lost.relative_to(tmp_path)}


def test_what_killed_jobs_left_is_removed(settings, tmp_path):
    """But for what is so young that another job may be writing it."""
    settings = with_flow(settings, cache=str(tmp_path))
    stcl.fill_flow_cache(settings, quiet=True)
    done = files(tmp_path)
    for number, path in enumerate([*done]):
        left = neighbour(tmp_path / path)
        left.write_bytes(b"half")
        if number:
            os.utime(left, (0, 0))
    stcl.fill_flow_cache(settings, quiet=True)
    (young,) = tmp_path.rglob(".*")
    assert neighbour_of(young.name) == next(iter(done)).name
    assert files(tmp_path) == done


def test_parts_make_the_whole(settings, tmp_path):
    settings = with_flow(settings, cache=str(tmp_path / "parts"))
    counts = [[each.written for each in stcl.fill_flow_cache(settings, (part, 3), quiet=True)] for part in (1, 2, 3)]
    assert np.array(counts).sum(0).tolist() == [4, 6, 2]
    whole = with_flow(settings, cache=str(tmp_path / "whole"))
    stcl.fill_flow_cache(whole, quiet=True)
    assert set(files(tmp_path / "parts")) == set(files(tmp_path / "whole"))
    for part in ((0, 3), (4, 3)):
        with pytest.raises(SettingError, match="A shard is i/n"):
            stcl.fill_flow_cache(settings, part, quiet=True)


def test_no_label_is_opened(settings, streets, tmp_path):
    """The target's label tree may be missing, and the source's labels may be no pictures."""
    shutil.copytree(streets, tmp_path / "streets")
    shutil.rmtree(tmp_path / "streets/target/gtFine")
    for label in (tmp_path / "streets/source").rglob("label/*.png"):
        label.write_bytes(b"")
    roots = {
        role: replace(getattr(settings, role), root=str(tmp_path / "streets" / role)) for role in ("source", "target")
    }
    settings = replace(with_flow(settings, cache=str(tmp_path / "cache")), **roots)
    assert [each.written for each in stcl.fill_flow_cache(settings, quiet=True)] == [4, 6, 2]


def test_frames_rendered_anew_are_noticed(settings, streets, tmp_path):
    shutil.copytree(streets / "source", tmp_path / "source")
    source = replace(settings.source, root=str(tmp_path / "source"))
    settings = replace(with_flow(settings, cache=str(tmp_path / "cache")), source=source)
    stcl.fill_flow_cache(settings, quiet=True)
    frame, other = sorted((tmp_path / "source").rglob("rgb/*.png"))[:2]
    later = time.time() + 5
    os.utime(frame, (later, later))  # touched, with the same content
    assert sum(each.written for each in stcl.fill_flow_cache(settings, quiet=True)) == 0
    frame.write_bytes(other.read_bytes())
    os.utime(frame, (later, later))
    with pytest.raises(DataError, match="belongs to other frames"):
        stcl.fill_flow_cache(settings, quiet=True)


def test_a_killed_process_is_gone_on_from(settings, tmp_path, monkeypatch):
    """Two processes at once, one of them killed; then one call completes the folder with whole files."""
    settings, call = with_flow(settings, cache=str(tmp_path)), DisFlow.__call__
    fork = multiprocessing.get_context("fork")
    killed, made = fork.Event(), []

    def dies(*given):
        made.append(given)
        if len(made) == 3:
            killed.set()
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*given)

    processes = []
    for flow in (dies, lambda *given: killed.wait() and call(*given)):
        monkeypatch.setattr(DisFlow, "__call__", flow)
        processes.append(fork.Process(target=stcl.fill_flow_cache, args=(settings, (1, 1), 0, True)))
        processes[-1].start()
    monkeypatch.setattr(DisFlow, "__call__", call)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0] and len(files(tmp_path)) == 12
    (tmp_path / [*files(tmp_path)][5]).unlink()
    assert sum(each.written for each in stcl.fill_flow_cache(settings, quiet=True)) == 1
    for clips in (*asked_clips(settings).values(), evaluation_clips(settings)):
        for item in range(len(clips)):
            clips[item]  # a damaged file would be an error


def test_the_command_says_what_it_did(settings, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(settings.dump())
    words = ["flow", str(config), "--shard", "1/2", "--workers", "0", "--quiet", f"--flow.cache={tmp_path / 'cache'}"]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()
    folders = {str(folder) for folder in (tmp_path / "cache").glob("*/*")}
    for count, line in zip((2, 3, 1), said, strict=True):
        assert f"{count} flows, {count} computed, 0 there before: " in line
    assert said[1].startswith("target: Data set 'cityscapes_seq', split 'train', in ")
    assert {line.rpartition(": ")[2] for line in said} == folders
    assert main(["flow", str(config)]) == 2
    assert capsys.readouterr().err.startswith("stcl: error: flow.cache is not set")


def test_nothing_to_fill(settings, tmp_path):
    with pytest.raises(SettingError, match=r"flow.cache is not set.*--flow.cache DIR"):
        stcl.fill_flow_cache(settings)
    for name in ("exact", "files", "zero"):
        with pytest.raises(SettingError, match=rf"Flow '{name}' is not estimated.*dis, raft"):
            stcl.fill_flow_cache(with_flow(settings, name=name, cache=str(tmp_path)))


def test_neighbouring_clips_share_their_flows(settings, tmp_path):
    clips = asked_clips(with_flow(settings, cache=str(tmp_path)))["target"]
    clips.spec = ClipSpec(frames=(0, -1, -2), flows=((0, -1), (-1, -2)))
    pairs = FramePairs(clips)
    named = [tuple(ref.name for ref in pairs.refs(position)) for position in range(len(pairs))]
    assert len(named) == len(set(named)) == 6 and len(clips) * 2 == 8
    assert all(a.number == b.number + 1 for a, b in map(pairs.refs, range(len(pairs))))


# ---- from settings to providers ----


def test_flow_files_of_a_data_set(streets, tmp_path):
    dataset = get_dataset("synthia_seq")(streets / "source")
    setting = FlowSettings("files", folder=str(tmp_path), cache=str(tmp_path / "c"))
    provider = make_flow(setting, dataset)
    assert isinstance(provider, FilesFlow)  # no copy of files is kept in a cache
    assert (provider.folder, provider.uncropped) == (tmp_path, (1280, 760))
    (tmp_path / "synthia_seq").mkdir()
    assert make_flow(setting, dataset).folder == tmp_path / "synthia_seq"
    whole = make_flow(setting, get_dataset("cityscapes_seq")(streets / "target"))
    assert (whole.folder, whole.uncropped) == (tmp_path, None)
    with pytest.raises(SettingError, match=r"flow\.folder is not set"):
        make_flow(FlowSettings("files"), dataset)
