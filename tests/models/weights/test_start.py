"""Starting weights of a network of the same and of other classes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from closeness import NETWORK, assert_close
from stcl.errors import CheckpointError
from stcl.models import VideoSegmenter, build_segmenter, load_weights, save_weights
from stcl.models.weights.own import read_weights
from stcl.models.weights.start import transfer_weights
from stcl.types import FramePair

STORED = ("road", "sky", "person", "car", "fence")
WANTED = ("car", "tree", "road", "person")
SHARED = ((0, 3), (2, 0), (3, 2))
"""Train ids in WANTED and in STORED."""


def build(classes: int, seed: int, width: int = 8, norm: str = "batch", fusion: str = "accel") -> VideoSegmenter:
    torch.manual_seed(seed)
    settings = {"width": width, "norm": norm}
    network = build_segmenter(classes, backbone_settings=settings, head_settings={"width": 16}, fusion=fusion)
    for module in network.modules():  # so that running statistics are something to be copied
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    return network.eval()


def save(path: Path, network: VideoSegmenter, classes: tuple[str, ...] = STORED) -> Path:
    save_weights(network, path, {"classes": json.dumps(classes)})
    return path


@pytest.fixture
def pair() -> FramePair:
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(2, 1, 3, 32, 64, generator=generator)
    return FramePair(frames[0], frames[1], torch.randn(1, 2, 32, 64, generator=generator))


def test_the_same_classes_take_every_tensor(tmp_path, pair):
    trained, fresh = build(5, 0), build(5, 1)
    assert transfer_weights(fresh, save(tmp_path / "a.safetensors", trained), STORED) == []
    assert torch.equal(fresh(pair).logits, trained(pair).logits)


def test_other_classes_are_matched_by_name(tmp_path, pair):
    trained, fresh = build(5, 0), build(4, 1)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    assert transfer_weights(fresh, save(tmp_path / "a.safetensors", trained), WANTED) == ["tree"]
    ours, theirs = fresh.frame_scores(pair.current), trained.frame_scores(pair.current)
    for mine, other in SHARED:
        assert_close(ours.main[:, mine], theirs.main[:, other], NETWORK)
        assert_close(ours.aux[:, mine], theirs.aux[:, other], NETWORK)
    after = fresh.state_dict()
    for name in [name for name in after if name.startswith("fusion.")]:
        assert torch.equal(after[name], before[name])
    last = [name for name in after if "head." in name and len(after[name]) == len(WANTED)]
    assert last
    for name in last:  # the class that the file lacks keeps its random start
        assert torch.equal(after[name][1], before[name][1])


def test_the_same_classes_in_another_order_are_matched_by_name(tmp_path, pair):
    trained, fresh = build(5, 0), build(5, 1)
    assert transfer_weights(fresh, save(tmp_path / "a.safetensors", trained), STORED[::-1]) == []
    flipped = trained.frame_scores(pair.current).main.flip(1)
    assert_close(fresh.frame_scores(pair.current).main, flipped, NETWORK)


def test_training_can_go_on_from_it(tmp_path, pair):
    fresh = build(4, 1).train()
    transfer_weights(fresh, save(tmp_path / "a.safetensors", build(5, 0)), WANTED)
    fresh(pair).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in fresh.head.parameters())


@pytest.mark.parametrize("classes", [STORED, WANTED])
def test_a_file_with_batch_norm_starts_a_network_with_group_norm(tmp_path, classes):
    trained, fresh = build(5, 0), build(len(classes), 1, norm="group")
    for parameter in trained.parameters():
        torch.nn.init.normal_(parameter)
    path = save(tmp_path / "a.safetensors", trained)
    transfer_weights(fresh, path, classes)
    lent = trained.backbone.state_dict()
    assert all(torch.equal(tensor, lent[name]) for name, tensor in fresh.backbone.state_dict().items())
    if classes == STORED:
        assert torch.equal(fresh.fusion.conv.weight, trained.fusion.conv.weight)
    with pytest.raises(CheckpointError, match=r"unexpected .*running_mean"):
        load_weights(fresh, path)


def test_the_statistics_of_batch_norm_cannot_be_made_up(tmp_path):
    path = save(tmp_path / "a.safetensors", build(5, 0, norm="group"))
    refused(build(5, 1), path, STORED, r"missing \(backbone.stem.1.running_mean")


@pytest.mark.parametrize("classes", [STORED, WANTED])
def test_fusion_may_be_on_either_side(tmp_path, pair, classes):
    trained, single = build(5, 0), build(len(classes), 1, fusion="none")
    torch.nn.init.normal_(trained.fusion.conv.weight)
    path = save(tmp_path / "a.safetensors", trained)
    transfer_weights(single, path, classes)
    ours, theirs = single(pair).logits, trained.frame_scores(pair.current).main
    columns = [STORED.index(name) if name in STORED else None for name in classes]
    for mine, other in enumerate(columns):
        if other is not None:
            assert_close(ours[:, mine], theirs[:, other], NETWORK)
    with pytest.raises(CheckpointError, match=r"unexpected \(fusion.conv.weight\)|instead of"):
        load_weights(single, path)
    # and back: at first the fused scores are those of the frame
    fused = build(len(classes), 2)
    transfer_weights(fused, save(tmp_path / "b.safetensors", single, classes), classes)
    assert_close(fused(pair).logits, single(pair).logits, NETWORK)


def refused(network: VideoSegmenter, path: Path, classes: tuple[str, ...], message: str) -> None:
    """The file is refused with one line that names it, and the network stays as it was."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        transfer_weights(network, path, classes)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_no_common_class(tmp_path):
    path = save(tmp_path / "a.safetensors", build(5, 0))
    refused(build(2, 1), path, ("table", "chair"), r"other classes \(road, .*\), none of which .* \(table, chair\)")


@pytest.mark.parametrize("classes", [STORED, WANTED])
def test_another_network(tmp_path, classes):
    path = save(tmp_path / "a.safetensors", build(5, 0))
    message = r"belongs to another network.*stem\.0\.weight \(8, 3, 3, 3\) instead of \(16, 3, 3, 3\)"
    refused(build(len(classes), 1, width=16), path, classes, message)


@pytest.mark.parametrize("metadata", [{"classes": "road"}, {"classes": "3"}, {"classes": "[1, 2]"}])
def test_not_a_file_of_stcl(tmp_path, metadata):
    path = tmp_path / "a.safetensors"
    save_file({"weight": torch.zeros(2)}, path, metadata=metadata)
    refused(build(5, 1), path, STORED, "does not say which classes it was trained on .* not written by stcl")
    save_file({"weight": torch.zeros(2)}, path)
    refused(build(5, 1), path, STORED, r"holds 1 tensors \(weight\) of no network that is known here")


def test_damaged_and_missing(tmp_path):
    path = save(tmp_path / "a.safetensors", build(5, 0))
    path.write_bytes(path.read_bytes()[:3000])
    refused(build(5, 1), path, STORED, r"not a whole safetensors file \(3000 bytes")
    refused(build(5, 1), tmp_path / "b.safetensors", STORED, "There is no weights file")


def test_the_same_state_gives_the_same_bytes(tmp_path):
    network = build(5, 0)
    metadata = {"classes": '["Straße"]', "config": "a: 1\nb: 2", "selection": "last"} | {f"k{i}": "v" for i in range(9)}
    paths = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for path in paths:
        save_weights(network, path, dict(reversed(metadata.items())) if path == paths[1] else metadata)
    assert len({path.read_bytes() for path in paths}) == 1
    assert read_weights(paths[0])[1] == metadata
    assert load_weights(build(5, 1), paths[0]) == metadata
