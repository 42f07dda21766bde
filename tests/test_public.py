"""The public verbs in Python."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stcl
from closeness import assert_close
from stcl.errors import CheckpointError, SettingError
from stcl.models import VideoSegmenter, save_weights
from stcl.training.networks import build_network
from stcl.types import FramePair

SMALL = ["--network.weights=null", "--network.backbone_settings={width: 4}", "--network.head_settings={width: 8}"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a finished training leaves, as far as the network goes."""
    settings = stcl.load_settings("twinstreets/source_only", SMALL)
    metadata = {"config": settings.dump(), "classes": json.dumps(settings.space.names)}
    save_weights(build_network(settings), tmp_path / "run" / "model.safetensors", metadata)
    (tmp_path / "run" / "config.yaml").write_text(settings.dump())
    return tmp_path / "run"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, stcl; print(stcl.__version__, *sorted({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, *modules = result.stdout.split()
    assert version == stcl.__version__
    assert not {"torch", "lightning", "numpy", "cv2", "yaml", "matplotlib"} & set(modules)


def test_every_public_name_is_there_and_described():
    for name in stcl.__all__:
        assert callable(getattr(stcl, name))
        assert getattr(stcl, name).__doc__


def test_lists():
    assert {"source_only", "stcl"} <= set(stcl.list_methods())
    assert {"synthia_seq", "cityscapes_seq", "camvid"} <= set(stcl.list_datasets())


def test_settings_by_name_by_path_and_with_overrides(tmp_path):
    settings = stcl.load_settings("twinstreets/stcl", ["--training.steps=7", "--seed", "3"])
    assert (settings.name, settings.training.steps, settings.seed) == ("stcl", 7, 3)
    own = tmp_path / "own.yaml"
    own.write_text("base: twinstreets/stcl\nname: own\n")
    assert stcl.load_settings(own).name == "own"
    with pytest.raises(SettingError, match="Did you mean 'twinstreets/stcl'"):
        stcl.load_settings("twinstreets/stlc")


def test_a_model_from_a_run_and_from_its_weights(run):
    first, second = stcl.load_model(run), stcl.load_model(str(run / "model.safetensors"))
    assert isinstance(first, VideoSegmenter)
    assert not first.training
    assert_close(dict(first.state_dict()), dict(second.state_dict()), 0.0)
    scores = first(FramePair(torch.rand(1, 3, 32, 64))).logits
    assert scores.shape == (1, 12, 8, 16)


def test_what_is_no_model_is_named(run, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(CheckpointError, match=r"other.* is no run folder: it holds no config\.yaml"):
        stcl.load_model(tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors"):
        stcl.load_model(tmp_path / "nowhere.safetensors")
    save_weights(torch.nn.Linear(2, 2), tmp_path / "bare.safetensors")
    with pytest.raises(
        CheckpointError, match=r"bare\.safetensors' holds 2 tensors \(bias, weight\) of no network that is known"
    ):
        stcl.load_model(tmp_path / "bare.safetensors")
    (run / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        stcl.load_model(run)
