"""The model card: what the hub reads of it, and that its numbers are those of the results."""

import copy
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from stcl.commands.export.card import front_matter, render_card, summarise
from stcl.labels import IGNORE, get_space
from stcl.pages.results import read_result

SPACE = get_space("synthia_seq-cityscapes_seq")


@pytest.fixture
def about() -> dict[str, Any]:
    """What ``model.json`` of a network without results holds."""
    return {
        "version": "0.1.0",
        "format": "safetensors",
        "name": "tiny",
        "title": "Tiny: 100 % | #1",
        "license": "unspecified",
        "classes": list(SPACE.names),
        "palette": SPACE.palette[: len(SPACE)].tolist(),
        "ignore": IGNORE,
        "protocol": {
            "name": SPACE.name,
            "version": 1,
            "reported": [*SPACE.reported],
            "averaging": "a",
            "resolution": "r",
        },
        "input": {"size": [64, 32]},
        "output": {"stride": 4, "upsampling": "bilinear"},
        "network": {"backbone": "small", "head": "stcl", "fusion": "accel"},
        "training": {
            "method": "stcl",
            "oracle": False,
            "source": {"name": "synthia_seq", "split": "train"},
            "target": {"name": "cityscapes_seq", "split": "train"},
            "start": None,
            "steps": 7,
            "seed": 3,
            "selection": "last EMA weights",
            "code": {"version": "0.1.0", "revision": "abc"},
        },
        "results": None,
        "parity": None,
        "graphs": {},
        "files": {"model.safetensors": {"bytes": 1234567, "sha256": "0" * 64}},
    }


def rows(card: str) -> dict[str, list[str]]:
    """Cells of the table of classes by class."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("|")
    ]
    return {row[1].removesuffix(" (not reported)"): row for row in cells if len(row) == 4 and row[0].isdecimal()}


def test_the_hub_can_read_it(about):
    card = ModelCard(render_card(about))
    data = card.data.to_dict()
    assert data["license"] == "other" and data["license_name"] == "unspecified"
    assert data["library_name"] == "stcl" and data["pipeline_tag"] == "image-segmentation"
    assert data["datasets"] == ["synthia_seq", "cityscapes_seq"] and data["metrics"] == ["mean_iou"]
    assert {"domain-adaptation", "video-segmentation", "stcl"} <= set(data["tags"])
    assert "model-index" not in data and card.data.eval_results is None
    assert card.text.strip().startswith(r"# Tiny: 100 % \| \#1")


def test_what_was_not_measured_is_not_claimed(about):
    card = render_card(about)
    assert "mIoU over the reported classes: **not measured**." in card
    assert {row[3] for row in rows(card).values()} == {"not measured"}
    assert "| target labels | not used in training |" in card and "| starting weights | random |" in card
    assert "Unspecified: ask whoever gave you this folder" in card


def test_nothing_of_the_template_is_left_in_it(about):
    card = render_card(about)
    assert not re.search(r"[{][{%]|[%}][}]|\w[(]\w+=", card.partition("## Classes and results")[2])
    assert "| code | stcl 0.1.0, revision abc |" in card


def test_the_numbers_are_those_of_the_results(about, make_run: Callable[..., Path]):
    result = read_result(make_run("stcl"))
    about |= {"results": summarise(result), "license": "CC-BY-4.0"}
    card = ModelCard(render_card(about))
    assert f"**{result.miou:.1f}** percent" in card.text
    for name, iou in zip(result.protocol.classes, result.iou, strict=True):
        assert rows(card.text)[name][3] == ("–" if iou != iou else f"{iou:.1f}")
    (measured,) = card.data.eval_results
    assert measured.metric_value == pytest.approx(result.miou, abs=1e-3) and measured.metric_type == "mean_iou"
    assert card.data.license == "cc-by-4.0" and "license_name" not in card.data.to_dict()


def test_absent_classes_and_colours(about):
    about["results"] = {"miou": None, "iou": {"road": None}, "split": "val", "frames": 1, "date": "2026-01-01"}
    table = rows(render_card(about))
    assert table["road"] == ["0", "road", "`#804080`", "–"] and list(table) == about["classes"]
    assert "model-index" not in front_matter(about)


def test_an_oracle_is_called_one(about):
    about["training"] |= {"oracle": True, "source": about["training"]["target"]}
    card = render_card(about)
    assert "an oracle, an upper bound and no adaptation" in card and "not used in training" not in card
    assert front_matter(about)["datasets"] == ["cityscapes_seq"]


def test_graphs_are_described(about):
    port = {"name": "image", "dtype": "float32", "shape": [None, 3, None, None], "meaning": "frames, RGB 0..1"}
    about |= {
        "format": "onnx",
        "graphs": {"frame": {"file": "frame.onnx", "inputs": [port], "outputs": [{**port, "name": "scores"}]}},
        "parity": {"difference": 1.25e-6, "agreement": 0.99875, "random_frames": 1, "real_frames": 2},
    }
    card = render_card(about)
    assert "  - input `image`: float32, shape (any, 3, any, any): frames, RGB 0..1" in card
    assert re.search(r"1\.[23]e-06 of the largest score", card) and "99.8750 percent" in card
    assert "segments each frame by itself" in card and "load_model" not in card


def test_a_card_depends_on_nothing_else(about, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before, first = copy.deepcopy(about), render_card(about)
    monkeypatch.chdir(tmp_path)
    assert render_card(about) == first and about == before


@pytest.mark.parametrize("name", ["a | b", "`a` [b](c) <d>", "**a** _b_ # c", "a\n---\n# b", "a: b # 'c' \"d\""])
def test_names_are_no_markup(about, name):
    about |= {"title": name, "name": name, "results": {"miou": 1.0, "iou": {}, "split": name, "frames": 1, "date": "x"}}
    about["training"] |= {"start": name, "source": {"name": name, "split": name}}
    card = ModelCard(render_card(about))
    assert card.data.to_dict()["datasets"][0] == name and card.data.eval_results[0].dataset_split == name
    shown = re.sub("<[^>]*>", "", MarkdownIt("commonmark").enable("table").render(card.text))
    assert " ".join(unescape(shown).split()).count(" ".join(name.split())) == 6
    assert len(rows(card.text)) == len(about["classes"])
