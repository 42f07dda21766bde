"""RAFT around a network of the same interface; where torchvision is installed, around its own, too."""

import sys

import cv2
import numpy as np
import pytest
import torch

from closeness import NETWORK, assert_close
from stcl.errors import SettingError, StclError
from stcl.flow import get_flow
from stcl.flow.raft import MODELS


def crop(scene, height, width):
    return scene.a, scene.b, scene.image_a[:height, :width], scene.image_b[:height, :width]


@pytest.mark.parametrize(("height", "width"), [(96, 128), (32, 64), (1, 2), (90, 121)])
def test_padding_is_put_on_below_and_on_the_right_and_taken_off(scene, torchvision, height, width):
    flow = get_flow("raft", model="small")(*crop(scene, height, width))
    assert flow.shape == (2, height, width)
    assert torchvision.made[0].sizes == [(1, 3, 128, 128)]
    for seen, image in zip(torchvision.made[0].seen[0], (scene.image_a, scene.image_b), strict=True):
        scaled = image[:height, :width].transpose(2, 0, 1) / 127.5 - 1  # bytes to -1..1
        assert_close(seen[0], np.pad(scaled, ((0, 0), (0, 128 - height), (0, 128 - width)), "edge"))
    if height > 32:
        assert np.abs(np.median(flow[0]) - 5) < 0.3 and np.abs(np.median(flow[1]) - 3) < 0.3


def test_larger_pictures_are_padded_to_eighths(street, torchvision):
    get_flow("raft")(*crop(street, 128, 249))
    get_flow("raft")(*street.pair)
    assert [network.sizes for network in torchvision.made] == [[(1, 3, 128, 256)]] * 2


def test_weights_are_loaded_once_and_when_they_are_needed(scene, torchvision):
    flow = get_flow("raft")
    assert not torchvision.made
    for _ in range(2):
        flow(*scene.pair)
    assert len(torchvision.made) == 1 and len(torchvision.made[0].sizes) == 2


def test_the_signature_tells_models_and_releases_apart(torchvision):
    assert get_flow("raft").signature == "raft(model=large, torchvision=0.99)"
    assert get_flow("raft", model="small").signature == "raft(model=small, torchvision=0.99)"


def test_without_torchvision(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)  # as if it were not installed
    with pytest.raises(SettingError, match=r"Flow 'raft' needs the package torchvision.*pip install torchvision"):
        get_flow("raft")


def test_wrong_input(scene, torchvision, monkeypatch):
    with pytest.raises(SettingError, match=r"model of flow 'raft' 'huge'.*large, small"):
        get_flow("raft", model="huge")
    with pytest.raises(SettingError, match="two images of one size"):
        get_flow("raft")(scene.a, scene.b, scene.image_a, scene.image_b[:50])

    def offline(**_):
        raise OSError("no route to host")

    monkeypatch.setattr(sys.modules["torchvision.models.optical_flow"], "raft_large", offline)
    message = (
        r"cannot be downloaded \(no route to host\).* put https://weights/large\.pth into the folder .*/checkpoints"
    )
    with pytest.raises(StclError, match=message):
        get_flow("raft")(*scene.pair)


@pytest.mark.parametrize("model", MODELS)
def test_as_torchvision_documents_it(scene, monkeypatch, tmp_path, model):
    """Its own transforms and network, with weights of chance in the place of the published ones."""
    flows = pytest.importorskip("torchvision.models.optical_flow", reason="torchvision is not installed")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    function, weights = (getattr(flows, name) for name in MODELS[model])
    torch.manual_seed(0)
    network = function(weights=None).eval()
    (tmp_path / "checkpoints").mkdir()
    torch.save(network.state_dict(), tmp_path / "checkpoints" / weights.DEFAULT.url.rpartition("/")[2])
    a, b = (cv2.resize(image, (200, 136)) for image in (scene.image_a, scene.image_b))  # of eighths: nothing is padded
    tensors = (torch.from_numpy(image).permute(2, 0, 1)[None] for image in (a, b))
    with torch.no_grad():
        expected = network(*weights.DEFAULT.transforms()(*tensors))[-1][0].numpy()
    assert np.abs(expected).max() > 1
    assert_close(get_flow("raft", model=model)(scene.a, scene.b, a, b), expected, NETWORK)
