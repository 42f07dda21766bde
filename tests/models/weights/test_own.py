"""Weights on disk, and what is said about files that do not fit."""

from pathlib import Path

import pytest
import torch

from closeness import assert_close
from stcl.errors import CheckpointError
from stcl.models import VideoSegmenter, build_segmenter, load_weights, save_weights


def build(classes: int = 5, width: int = 8) -> VideoSegmenter:
    return build_segmenter(classes, backbone_settings={"width": width}, head_settings={"width": 8})


def test_round_trip(tmp_path: Path) -> None:
    first, second = build(), build()
    save_weights(first.to(memory_format=torch.channels_last), tmp_path / "deep" / "a.safetensors", {"step": "7"})
    assert load_weights(second, tmp_path / "deep" / "a.safetensors") == {"step": "7"}
    assert_close(dict(second.state_dict()), dict(first.state_dict()), 0.0)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.safetensors"]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    network, path = build(), tmp_path / "r\udce4n" / "\udcff.safetensors"
    save_weights(network, path, {"step": "7"})
    assert load_weights(build(), path) == {"step": "7"}
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"safetensors' is not a whole safetensors file \(100 bytes"):
        load_weights(network, path)


def test_another_network_is_refused_with_the_differences(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(build(classes=7), path, {"classes": "7"})
    network = build()
    network.extra = torch.nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(network, path)
    message = str(caught.value)
    assert "2 missing (extra.weight, extra.bias)" in message
    assert "head.head.1.weight (7, 8, 1, 1) instead of (5, 8, 1, 1)" in message
    assert "classes: 7" in message
    assert_close(dict(network.state_dict()), before, 0.0)


def test_unexpected_names_are_counted_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(build(), path)
    with pytest.raises(CheckpointError, match=r"unexpected \(.*, \.\.\.\)"):
        load_weights(build().head, path)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="no weights file"):
        load_weights(build(), path)
    with pytest.raises(CheckpointError, match="it is a folder and not a file"):
        load_weights(build(), tmp_path)
    save_weights(build(), path)
    whole = path.read_bytes()
    for damaged in (b"", b"hello", whole[:100], whole[:-10]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"not a whole safetensors file \\({len(damaged)} bytes"):
            load_weights(build(), path)
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_weights(build(), path)
