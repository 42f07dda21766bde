"""ResNets beside transformers' own, and what output strides and frozen statistics mean."""

import pytest
import torch
import transformers
from torch import Tensor, nn

from closeness import NETWORK, assert_close
from stcl.errors import SettingError
from stcl.models import EmaTeacher, build_segmenter, recalibrate
from stcl.models.backbones.resnet import ResNet
from stcl.models.norms import norm_layers
from stcl.types import FramePair

WAYS = [(18, "first"), (50, "first"), (50, "middle")]
"""Depth, and where a bottleneck has its stride."""


def lively(depth: int, **settings: object) -> ResNet:
    """With statistics, scales and shifts that matter."""
    torch.manual_seed(0)
    network = ResNet(depth, **settings)
    for layer in norm_layers(network):
        nn.init.normal_(layer.running_mean, std=0.1)
        nn.init.uniform_(layer.running_var, 0.5, 1.5)
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias, std=0.1)
    return network.eval()


def in_their_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names as those of the library."""
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        kind = {"conv": "convolution", "bn": "normalization"}
        if parts[0] in ("conv1", "bn1"):
            new = ["embedder", "embedder", kind[parts[0][:-1]]]
        else:
            new = ["encoder", "stages", str(int(parts[0][-1]) - 1), "layers", parts[1]]
            if parts[2] == "downsample":
                new += ["shortcut", ("convolution", "normalization")[int(parts.pop(3))]]
            else:
                new += ["layer", str(int(parts[2][-1]) - 1), kind[parts[2][:-1]]]
        renamed[".".join([*new, parts[-1]])] = tensor
    return renamed


@pytest.mark.parametrize(("depth", "stride_in"), WAYS)
def test_at_stride_32_it_is_the_librarys_resnet(depth, stride_in):
    ours = lively(depth, output_stride=32, stride_in=stride_in, input="imagenet")
    ours.maxpool.ceil_mode = False  # as published for DeepLab, and nowhere else
    config = transformers.ResNetConfig(
        depths=(2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3),
        hidden_sizes=tuple(ours.channels.values()),
        layer_type="basic" if depth == 18 else "bottleneck",
        downsample_in_bottleneck=stride_in == "first",
    )
    theirs = transformers.ResNetModel(config).eval()
    theirs.load_state_dict(in_their_names(ours.state_dict()))
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(ours.normalise(image), output_hidden_states=True).hidden_states[1:]
        for mine, other in zip(ours(image).values(), expected, strict=True):
            assert_close(mine, other, NETWORK)


@pytest.mark.parametrize(("depth", "stride_in"), WAYS)
@pytest.mark.parametrize("output_stride", [4, 8, 16])
def test_a_smaller_output_stride_computes_the_same_at_more_places(depth, stride_in, output_stride):
    """Dilation behind a stride that is left out: each place of the coarse map is one of the fine map's."""
    coarse = lively(depth, output_stride=32, stride_in=stride_in).double()
    fine = lively(depth, output_stride=output_stride, stride_in=stride_in).double()
    assert fine.strides["layer4"] == output_stride and coarse.strides["layer4"] == 32
    image = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        wanted, found = coarse(image), fine(image)
    for stage in coarse.stages:
        step = coarse.strides[stage] // fine.strides[stage]
        assert_close(found[stage][..., ::step, ::step], wanted[stage])


def test_resnet18_has_torchvisions_names():
    names = set(ResNet(18).state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer2.0.downsample.1.weight"} <= names
    assert "layer1.0.downsample.0.weight" not in names and "layer4.1.conv2.weight" in names
    assert sum(parameter.numel() for parameter in ResNet(18).parameters()) == 11_176_512  # torchvision's without fc


def test_frozen_statistics_stay_whatever_runs():
    torch.manual_seed(0)
    settings = {"freeze_norm_statistics": True, "freeze_norm_affine": True}
    network = build_segmenter(5, "resnet18", "tps", backbone_settings=settings)
    reference = build_segmenter(5, "resnet18", "tps")
    source = lively(18)
    for each in (network, reference):
        each.backbone.load_state_dict(source.state_dict())
    reference.load_state_dict(network.state_dict())  # the same names
    frames = torch.rand(2, 3, 32, 48)
    expected = reference.eval()(FramePair(frames)).logits
    assert_close(network.train()(FramePair(frames)).logits, expected, NETWORK)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    teacher = EmaTeacher(network, statistics="batch")
    assert_close(teacher(FramePair(frames)).logits, expected.detach(), NETWORK)
    assert recalibrate(network, [FramePair(frames)]) == 0
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    norms = [name for name, parameter in network.backbone.named_parameters() if parameter.ndim == 1]
    assert norms and not any(dict(network.backbone.named_parameters())[name].requires_grad for name in norms)


def test_scale_and_shift_can_learn_beside_frozen_statistics():
    backbone = ResNet(18, freeze_norm_affine=False, freeze_norm_statistics=True).train()
    backbone(torch.rand(1, 3, 32, 32))["layer4"].sum().backward()
    assert backbone.bn1.weight.grad is not None and not norm_layers(backbone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 34}, r"no ResNet-34 here; depth is one of \[18, 50, 101\]"),
        ({"output_stride": 12}, r"one of \[4, 8, 16, 32\], not 12"),
        ({"stride_in": "last"}, "'first' or 'middle', not 'last'"),
        ({"input": "rgb"}, "Unknown input 'rgb'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(SettingError, match=message):
        ResNet(**settings)
