"""Every class of network in a whole run: training with all parts of STCL, evaluation, starting weights by name."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import stcl
from stcl.errors import CheckpointError, SettingError
from stcl.models import BACKBONES, build_segmenter
from stcl.training.checking import check_settings
from stcl.training.config import merge
from stcl.training.evaluate import statistics_of
from stcl.training.networks import build_network, load_trained
from stcl.training.train import train

PARTS = {
    "sequence_fusion": {"into_source": True, "target_patches": True},
    "feature_fusion": {"start": 0.0},
    "alignment": {"form": "mmd"},
}
"""Every part of STCL that looks into the network."""


@pytest.mark.parametrize(
    ("backbone", "head", "settings", "stage"),
    [
        ("mit_b0", "daformer", {}, "stage2"),
        pytest.param("dinov2_small", "mlp", {"frozen": True}, "layer6", marks=pytest.mark.slow),
        pytest.param("resnet18", "tps", {"freeze_norm_statistics": True}, "layer3", marks=pytest.mark.slow),
    ],
)
def test_a_run(plain, tmp_path, backbone, head, settings, stage):
    network = {"backbone": backbone, "head": head, "head_settings": {"width": 8}}
    method = {**PARTS, "feature_fusion": {"stage": stage, "start": 0.0}, "optimization": {"decayed": "all_but_norms"}}
    whole = {**plain, "network": {**network, "backbone_settings": settings}}
    training = {"steps": 2, "gradient_checkpointing": True}
    run_settings = check_settings(merge(whole, {"training": training, "method": method}), "tiny")
    before = build_network(run_settings).state_dict()
    out = train(run_settings, tmp_path / "run", quiet=True)
    after = load_file(out / "model.safetensors")
    moved = {name.partition(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved >= ({"head", "fusion"} if settings.get("frozen") else {"backbone", "head", "fusion"})
    assert settings.get("frozen") is None or "backbone" not in moved
    network = load_trained(run_settings, out / "model.safetensors")
    assert stcl.evaluate(out, quiet=True)["statistics"] == statistics_of(network, run_settings)


@pytest.mark.parametrize(
    ("backbone", "head", "settings", "statistics"),
    [
        ("mit_b0", "mlp", {}, "source batch-norm statistics"),
        ("mit_b0", "stcl", {}, "each frame's own"),
        ("small", "tps", {"norm": "group"}, "each frame's own"),
        ("resnet18", "tps", {}, "source batch-norm statistics"),
        ("resnet18", "tps", {"freeze_norm_statistics": True}, "those of the starting weights"),
    ],
)
def test_results_say_what_the_norms_normalise_with(make_settings, backbone, head, settings, statistics):
    with torch.device("meta"):
        network = build_segmenter(5, backbone, head, backbone_settings=settings)
    assert statistics_of(network, make_settings()) == statistics


def test_published_weights_start_a_run_by_their_name(make_settings, monkeypatch, tmp_path):
    torch.manual_seed(7)
    source = BACKBONES["mit_b0"]().encoder.state_dict()
    path = tmp_path / "nvidia" / "mit-b0" / "model.safetensors"
    path.parent.mkdir(parents=True)
    save_file(source, path)
    monkeypatch.setenv("STCL_WEIGHTS", str(tmp_path))
    network = {"backbone": "mit_b0", "head": "mlp", "head_settings": {"width": 8}, "backbone_settings": None}
    by_name, by_path, random = (
        build_network(make_settings(network={**network, "weights": weights}))
        for weights in ("pretrained:imagenet", f"pretrained:{path}", None)
    )
    for name, tensor in source.items():
        assert torch.equal(by_name.backbone.encoder.state_dict()[name], tensor)
    for name, tensor in random.head.state_dict().items():  # the heads start as without
        assert torch.equal(by_name.head.state_dict()[name], tensor)
    assert all(torch.equal(t, by_path.state_dict()[name]) for name, t in by_name.state_dict().items())


def test_a_frozen_teacher_is_not_a_file_without_heads(make_settings, tmp_path):
    """Known only once the file is open: its backbone is trained, the heads would label by chance."""
    torch.manual_seed(7)
    path = tmp_path / "mit_b0.safetensors"
    save_file(BACKBONES["mit_b0"]().encoder.state_dict(), path)
    network = {"backbone": "mit_b0", "auxiliary": False, "backbone_settings": None, "weights": str(path)}
    frozen = {"teacher": {"kind": "frozen"}}
    with pytest.raises(SettingError, match="its heads would be random"):
        build_network(make_settings(network=network, method=frozen))
    for method in ({**frozen, "warmup": 1}, {"teacher": {"kind": "ema"}}):
        assert build_network(make_settings(network=network, method=method))


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ("pretrained:imagnet", SettingError, "Did you mean 'imagenet'"),
        ("pretrained:", SettingError, "Known: imagenet"),
        ("pretrained:nowhere.safetensors", CheckpointError, "no weights file 'nowhere.safetensors'"),
    ],
)
def test_wrong_names_of_weights(make_settings, weights, error, message):
    network = {"backbone": "mit_b0", "backbone_settings": None, "weights": weights}
    with pytest.raises(error, match=message):
        build_network(make_settings(network=network))
