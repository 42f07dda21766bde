"""What is measured of flow agrees with numbers worked out otherwise, and pictures show what they say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import stcl
from stcl.commands.flow.quality import LARGEST_ERROR, error_colours, measure_flow, shown_flow, validity_colours
from stcl.data import ClipDataset, get_dataset
from stcl.errors import SettingError
from stcl.flow import get_flow
from stcl.ops.warp import UNKNOWN_PX, consistent, inside, photometric_error
from stcl.training.settings import FlowSettings
from stcl.twinstreets.export import ExportRequest, export
from stcl.types import ClipSpec

SIZE = (64, 32)


@pytest.fixture(scope="module")
def settings(make_settings, streets, tmp_path_factory):
    """The source has exact flow to the frame before; the target's labels are gone."""
    root = tmp_path_factory.mktemp("exact")
    export(root, ExportRequest("synthia-seq", "clean", clips=2, frames=3, size=SIZE, flow_offsets=(1,)), progress=False)
    plain = make_settings("tps")
    return replace(plain, source=replace(plain.source, root=str(root)))


@pytest.fixture(scope="module")
def report(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("flow") / "report"
    page = stcl.write_flow_report(replace(settings, target=settings.source), out, 4, ("zero", "exact"), quiet=True)
    assert page == out / "flow.html" and page.is_file()
    return out


def test_the_numbers(report, settings):
    record = json.loads((report / "flow.json").read_text())
    source, _ = record["domains"]
    assert source["pairs"] == 4 and source["size"] == [64, 32] and record["flows"] == ["dis", "zero", "exact"]
    dataset = get_dataset("synthia_seq")(settings.source.root)
    spec = ClipSpec(frames=(0, -1), flows=((0, -1), (-1, 0)))
    clips = ClipDataset(dataset, spec, settings.space, SIZE, flow=get_flow("dis", preset="fast"))
    errors, closed, stay = [], [], []
    for clip in (clips[item] for item in range(4)):
        there, back = clip.flow(0, -1)[None], clip.flow(-1, 0)[None]
        error = photometric_error(clip.frame(0)[None] / 255, clip.frame(-1)[None] / 255, there)
        stay.append(inside(there))
        errors.append(error[inside(there)])
        closed.append(consistent(there, back))
    every, dis = torch.cat(errors) * 255, source["rows"][0]
    assert dis["mean"] == pytest.approx(float(every.mean()), abs=0.15)
    for name, share in (("median", 0.5), ("p90", 0.9), ("p99", 0.99)):
        assert dis[name] == pytest.approx(float(every.quantile(share)), abs=0.4)  # steps of 0.255
    assert dis["inside"] == pytest.approx(100 * float(torch.cat(stay).float().mean()))
    assert dis["consistent"] == pytest.approx(100 * float(torch.cat(closed).float().mean()))
    zero, exact = source["rows"][1:]
    assert (zero["inside"], zero["consistent"], zero["length_px"]) == (100, 100, 0)
    assert exact["mean"] < zero["mean"] and exact["length_px"] > 0
    assert exact["consistent"] is None and exact["consistent_mean"] is None  # no file leads back


def test_the_pictures(report):
    record = json.loads((report / "flow.json").read_text())
    assert len(record["domains"][0]["shown"]) == 3
    for pair in record["domains"][0]["shown"]:
        shown = {name: np.asarray(Image.open(report / pair[name])) for name in ("frame", "previous")}
        zero = {part: np.asarray(Image.open(report / path)) for part, path in pair["flows"]["zero"].items()}
        assert np.array_equal(zero["warped"], shown["previous"]) and (zero["flow"] == 255).all()
        assert len(np.unique(np.ptp(zero["validity"], axis=2))) == 1  # grey: everything is trusted
        assert np.ptp(np.asarray(Image.open(report / pair["flows"]["dis"]["flow"]))) > 50
        assert not np.array_equal(np.asarray(Image.open(report / pair["flows"]["exact"]["warped"])), shown["previous"])


def test_colours_end_where_they_say():
    error = np.array([[0, LARGEST_ERROR / 2, LARGEST_ERROR, 1]], np.float32)
    colours = error_colours(error).astype(int)
    assert (colours[0, 2] == colours[0, 3]).all() and np.all(np.diff(colours.sum(2)[0, :3]) > 50)
    flow = np.array([[[0, 2, UNKNOWN_PX]], [[0, 0, 0]]], np.float32)
    assert (shown_flow(flow, 2.0)[0] == [[255, 255, 255], [255, 64, 64], [128, 128, 128]]).all()
    image, seen = np.full((1, 3, 3), 100, np.uint8), np.array([[True, True, False]])
    marked = validity_colours(image, seen, np.array([[True, False, False]]))
    assert (marked[0, 0] == 100).all() and marked[0, 1].argmax() == 0 and marked[0, 2].argmax() == 2
    assert (validity_colours(image, seen, None)[0, 1] == 100).all()


def test_wrong_requests(settings, tmp_path):
    with pytest.raises(SettingError, match="at least 1, not 0"):
        measure_flow(settings, tmp_path / "new", 0, ())
    (tmp_path / "else").mkdir()
    (tmp_path / "else/notes.txt").write_text("mine")
    with pytest.raises(SettingError, match="holds something else"):
        measure_flow(settings, tmp_path / "else", 1, ())
    with pytest.raises(SettingError, match="Did you mean 'zero'"):
        measure_flow(settings, tmp_path / "new", 1, ("zeros",), quiet=True)
    with pytest.raises(SettingError, match=r"flow\.folder is not set"):
        measure_flow(replace(settings, flow=FlowSettings("files")), tmp_path / "new", 1, (), quiet=True)
    assert not (tmp_path / "new").exists()
