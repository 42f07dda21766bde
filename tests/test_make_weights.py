"""The small file that `make weights` puts into the package."""

import pytest
import torch

from closeness import assert_close
from scripts import BENCHMARKS, scripts_of
from stcl.labels import get_space
from stcl.models import build_segmenter, load_weights, save_weights
from stcl.models.weights.own import read_weights
from stcl.models.weights.start import transfer_weights

METADATA = {"config": "name: pretrain", "classes": '["road", "car"]', "selection": "last EMA weights"}


def build(classes: int):
    return build_segmenter(classes, backbone_settings={"width": 4}, head_settings={"width": 8})


@pytest.fixture
def main():
    with scripts_of(BENCHMARKS) as load:
        yield load("make_weights").main


def test_half_the_size_the_same_network(main, tmp_path):
    network = build(2)
    network.backbone.stem[1].running_var.fill_(1e6)  # beyond float16
    save_weights(network, tmp_path / "run" / "model.safetensors", METADATA)
    assert main([str(tmp_path / "run"), str(tmp_path / "weights" / "small.safetensors")]) == 0
    tensors, metadata = read_weights(tmp_path / "weights" / "small.safetensors")
    assert metadata == METADATA
    kinds = {"running_mean": torch.float32, "running_var": torch.float32, "num_batches_tracked": torch.int64}
    for name, tensor in tensors.items():
        assert tensor.dtype == kinds.get(name.rpartition(".")[2], torch.float16)
    other = build(2)
    load_weights(other, tmp_path / "weights" / "small.safetensors")
    assert {tensor.dtype for tensor in other.state_dict().values()} == {torch.float32, torch.int64}
    assert_close(dict(other.state_dict()), dict(network.state_dict()), 1e-3)  # half precision has 11 bits


def test_it_starts_a_network_of_other_classes(main, tmp_path):
    classes = get_space("twinstreets-camvid").names
    save_weights(build(2), tmp_path / "model.safetensors", METADATA)
    main([str(tmp_path), str(tmp_path / "small.safetensors")])
    network = build(len(classes))
    missing = transfer_weights(network, tmp_path / "small.safetensors", classes)
    assert missing == [name for name in classes if name not in ("road", "car")]
    tensors, _ = read_weights(tmp_path / "small.safetensors")
    rows = network.head.head[1].weight[[classes.index("road"), classes.index("car")]]
    assert_close(rows.detach(), tensors["head.head.1.weight"].float())


def test_a_run_without_weights_is_named(main, tmp_path, capsys):
    assert main([str(tmp_path), str(tmp_path / "small.safetensors")]) == 2
    assert "model.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "small.safetensors").exists()
