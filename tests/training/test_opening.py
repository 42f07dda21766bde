"""Opening checkpoints of any origin, and starting a training from a published one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import stcl
from closeness import NETWORK, assert_close
from stcl.errors import CheckpointError, SettingError
from stcl.labels import SPACES
from stcl.models import build_segmenter
from stcl.training.networks import build_method, build_network, open_checkpoint

SPACE = "synthia_seq-cityscapes_seq"
PUBLISHED = {"backbone.": "", "aux_head.": "layer5.", "head.": "layer6.", "fusion.conv.": "sf_layer."}
RESNET: dict[str, Any] = {"backbone": "resnet50", "backbone_settings": None}


@pytest.fixture(scope="module")
def tps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of TPS with random weights, as its code saves it; a ResNet-50 to be quick."""
    torch.manual_seed(0)
    state = build_segmenter(12, "resnet50", "tps").state_dict()
    places = {name: next(ours for ours in PUBLISHED if name.startswith(ours)) for name in state}
    path = tmp_path_factory.mktemp("published") / "model_40000.pth"
    torch.save({PUBLISHED[at] + name.removeprefix(at): state[name] for name, at in places.items()}, path)
    return path


def test_a_run_its_weights_and_its_checkpoint_are_the_same_network(trained):
    opened = [open_checkpoint(trained / name) for name in ("", "model.safetensors", "checkpoints/last.ckpt")]
    assert [one.description for one in opened] == ["run tiny", "weights of run tiny", "checkpoint of run tiny"]
    first = opened[0].network.state_dict()
    for one in opened:
        assert not one.network.training
        assert one.space == one.network.space == SPACES[SPACE]
        assert all(torch.equal(parameter, first[name]) for name, parameter in one.network.named_parameters())


def test_the_space_of_a_run_is_its_own(trained):
    assert open_checkpoint(trained, SPACE).space.name == SPACE
    with pytest.raises(
        CheckpointError, match=r"was trained on the classes of 'synthia_seq.*not on those of 'cityscapes'"
    ):
        open_checkpoint(trained / "model.safetensors", "cityscapes")
    with pytest.raises(SettingError, match="Unknown label space 'cities'"):
        open_checkpoint(trained, "cities")


def test_what_comes_with_the_package_opens():
    opened = open_checkpoint("builtin:small")
    assert opened.space.name == SPACE
    assert opened.description.startswith("weights of run ")


def test_a_run_starts_from_the_checkpoint_of_another(make_settings, trained):
    settings = make_settings("source_only", network={"weights": str(trained / "checkpoints" / "last.ckpt")})
    ours, theirs = build_network(settings), stcl.load_model(trained)
    assert all(torch.equal(p, theirs.get_parameter(name)) for name, p in ours.named_parameters())


def test_the_published_recipe_starts_from_a_tps_network_which_labels_the_target(make_settings, tps):
    """Head layer7 on the network of layer6: the frozen teacher gives the labels of TPS."""
    settings = make_settings(
        "stcl", network={**RESNET, "weights": str(tps)}, method={"teacher": {"kind": "frozen", "frozen_steps": 8000}}
    )
    method = build_method(settings)
    image = torch.rand(1, 3, 32, 64)
    published = stcl.load_model(tps)
    with torch.no_grad():
        wanted = published.frame_scores(image)
        found = method.start.network.frame_scores(image)
    assert_close(found.main, wanted.main, NETWORK)
    assert_close(found.aux, wanted.aux, NETWORK)


def test_another_network_is_refused(make_settings, tps):
    settings = make_settings("source_only", network={**RESNET, "backbone": "resnet18", "weights": str(tps)})
    with pytest.raises(CheckpointError, match=r"another network .*\(network\.backbone resnet50, network\.head tps\)"):
        build_network(settings)


@pytest.mark.parametrize(
    "config", ["name: x\n- : :bad", "[1, 2]", '{"architecture": "unet"}', "!!python/name:os.system"]
)
def test_a_configuration_of_another_program(tmp_path, config):
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors", {"config": config})
    with pytest.raises(CheckpointError, match=r"not one of this version of 'stcl train'.*Save the tensors alone"):
        open_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "tensors",
    [
        {"patch_embed1.proj.weight": torch.tensor(1.0)},
        {"patch_embed1.proj.weight": torch.zeros(32, 3, 7, 7), "block1.0.attn.kv.weight": torch.tensor(1.0)},
        {"patch_embed1.proj.weight": torch.zeros(32, 3, 7, 7), "stages.0": torch.zeros(1)},
    ],
    ids=["no rows", "no halves", "no part"],
)
def test_known_names_of_unknown_shapes(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="has the names of a network that is known here, but not its shapes"):
        open_checkpoint(tmp_path / "model.safetensors")


def test_what_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint '.*runs/none'\. Give the folder of a run.*builtin:small"):
        open_checkpoint(tmp_path / "runs" / "none")


def test_weights_by_name_have_no_heads():
    with pytest.raises(CheckpointError, match="'pretrained:imagenet' is a backbone and has no heads"):
        open_checkpoint("pretrained:imagenet")
