"""What every backbone of the registry must do, and what is special about the published one."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from closeness import NETWORK, assert_close
from stcl.errors import SettingError
from stcl.models import (
    BACKBONES,
    Backbone,
    EmaTeacher,
    build_segmenter,
    hold_statistics,
    inference_statistics,
    recalibrate,
)
from stcl.models.backbones.base import BGR_MEAN
from stcl.models.backbones.small import SmallBackbone
from stcl.models.norms import norm_layers, synchronise_norms
from stcl.types import FramePair


@pytest.fixture(scope="module")
def backbone(kind: str) -> Backbone:
    torch.manual_seed(0)
    return BACKBONES[kind]()


@pytest.mark.parametrize("size", [(32, 64), (37, 51)])
def test_channels_and_strides_are_true(backbone: Backbone, size: tuple[int, int]) -> None:
    with torch.no_grad():
        declared(backbone, backbone(torch.rand(2, 3, *size)), size)


@pytest.mark.parametrize("name", BACKBONES)
def test_channels_and_strides_are_true_of_every_size(name: str) -> None:
    with torch.device("meta"):  # shapes without contents
        backbone, size = BACKBONES[name](), (61, 90)
        declared(backbone, backbone(torch.rand(2, 3, *size)), size)


def declared(backbone: Backbone, features: dict[str, Tensor], size: tuple[int, int]) -> None:
    assert tuple(features) == backbone.stages
    for stage, map_ in features.items():
        assert map_.shape[1] == backbone.channels[stage]
        for cells, pixels in zip(map_.shape[-2:], size, strict=True):
            # rounded up by strided convolutions; the published max-pool's ceil_mode may add one cell
            exact = math.ceil(pixels / backbone.strides[stage])
            assert exact <= cells <= exact + 1


def test_what_the_tap_returns_goes_on(backbone: Backbone) -> None:
    seen: list[str] = []
    shift = torch.zeros(1, requires_grad=True)

    def tap(stage: str, features: Tensor) -> Tensor:
        seen.append(stage)
        if stage != backbone.stages[0]:
            return features
        return features + shift * torch.randn_like(features)  # a constant would be normalised away

    features = backbone(torch.rand(2, 3, 32, 32), tap)
    assert tuple(seen) == backbone.stages
    last = features[backbone.stages[-1]]
    (gradient,) = torch.autograd.grad((last * torch.randn_like(last)).sum(), shift)  # so would a sum of squares
    assert gradient.abs() > 1e-3


def test_state_round_trip(kind: str) -> None:
    first, second = BACKBONES[kind]().eval(), BACKBONES[kind]().eval()
    second.load_state_dict(first.state_dict())
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert_close(second(image), first(image), NETWORK)


def test_resnet101_is_the_published_one() -> None:
    network = build_segmenter(12, "resnet101")
    backbone = network.backbone
    names = {name.split(".")[0] for name in backbone.state_dict()}
    assert names == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert "layer3.22.bn3.running_var" in backbone.state_dict()
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 42_500_160
    norms = [layer for layer in backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(not parameter.requires_grad for layer in norms for parameter in layer.parameters())
    assert backbone.layer2[0].conv1.stride == (2, 2) and backbone.layer2[0].conv2.stride == (1, 1)
    assert {layer.dilation for layer in modules_of(backbone.layer3, 3)} == {(2, 2)}
    assert {layer.dilation for layer in modules_of(backbone.layer4, 3)} == {(4, 4)}
    assert set(network.head.state_dict()) == {
        *(f"conv2d_list.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")),
        "head.1.weight",
    }
    assert network.head.conv2d_list[3].weight.shape == (256, 2048, 3, 3)
    assert network.aux_head.conv2d_list[0].weight.shape == (12, 1024, 3, 3)
    assert 0.009 < network.head.conv2d_list[0].weight.detach().std() < 0.011


def modules_of(stage: nn.Module, kernel: int) -> list[nn.Conv2d]:
    return [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (kernel, kernel)]


def test_published_input_is_bgr_minus_the_mean() -> None:
    backbone = BACKBONES["resnet50"]()
    red = torch.tensor((1.0, 0.0, 0.0)).view(1, 3, 1, 1)
    expected = torch.tensor((-BGR_MEAN[0], -BGR_MEAN[1], 255 - BGR_MEAN[2])).view(1, 3, 1, 1)
    assert_close(backbone.normalise(red), expected)


@pytest.mark.parametrize(("stride", "stages"), [(4, "decode4"), (8, "decode8")])
def test_small_output_stride(stride: int, stages: str) -> None:
    network = build_segmenter(5, backbone_settings={"width": 8, "output_stride": stride})
    output = network(FramePair(torch.rand(2, 3, 32, 64)))
    assert network.stage == stages
    assert output.logits.shape == (2, 5, 32 // stride, 64 // stride)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet100"}, "Did you mean 'resnet101'"),
        ({"head": "stc"}, "Did you mean 'stcl'"),
        ({"backbone_settings": {"widht": 8}}, "Did you mean 'width'"),
        ({"head_settings": {"dilation": (1,)}}, "Did you mean 'dilations'"),
        ({"backbone_settings": {"output_stride": 3}}, "4 or 8, not 3"),
        ({"backbone_settings": {"norm": "groups"}}, "Did you mean 'group'"),
        ({"fusion": "accell"}, "Did you mean 'accel'"),
    ],
)
def test_wrong_settings_name_the_right_ones(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build_segmenter(5, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [4, 24])
def test_group_norm_takes_the_place_of_every_batch_norm(width: int) -> None:
    batch, group = (SmallBackbone(width, norm=norm) for norm in ("batch", "group"))
    norms = {name: layer for name, layer in batch.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    groups = {name: layer for name, layer in group.named_modules() if isinstance(layer, nn.GroupNorm)}
    assert not norm_layers(group)
    assert {name: layer.num_features for name, layer in norms.items()} == {
        name: layer.num_channels for name, layer in groups.items()
    }
    assert all(layer.num_channels // layer.num_groups == math.gcd(8, width) for layer in groups.values() if width == 24)
    assert dict(group.named_parameters()).keys() == dict(batch.named_parameters()).keys()


def test_group_norm_depends_on_the_frame_alone_and_on_no_mode() -> None:
    torch.manual_seed(0)
    network = build_segmenter(5, backbone_settings={"width": 8, "norm": "group"}, head_settings={"dropout": 0.0})
    frames = torch.rand(3, 3, 32, 64)
    with torch.no_grad():
        together, alone = network(FramePair(frames)).logits, network(FramePair(frames[:1])).logits
        assert_close(together[:1], alone, NETWORK)
        with inference_statistics(network, "batch"), hold_statistics(network):
            assert_close(network(FramePair(frames)).logits, together, NETWORK)
        assert_close(network.eval()(FramePair(frames)).logits, together, NETWORK)


def test_what_is_done_to_batch_norm_leaves_a_network_without_it_alone() -> None:
    network = build_segmenter(5, backbone_settings={"width": 8, "norm": "group"})
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    names = {name: type(layer) for name, layer in network.named_modules()}

    def unread() -> Iterator[FramePair]:
        raise AssertionError("no frame is needed")
        yield

    assert recalibrate(network, unread()) == 0
    synchronise_norms(network, "cpu")
    teacher = EmaTeacher(network, statistics="batch")
    teacher(FramePair(torch.rand(2, 3, 32, 64)))
    teacher.update(network, 0)
    assert {name: type(layer) for name, layer in network.named_modules()} == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_scale_and_shift_can_be_frozen(norm: str) -> None:
    backbone = SmallBackbone(8, freeze_norm_affine=True, norm=norm)
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in backbone.named_parameters() if parameter.ndim == 1}
