"""MiT, DINOv2 and the heads that read all stages, beside the transformers library and the published facts."""

import math
import sys
from copy import deepcopy
from functools import cache

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from closeness import NETWORK, assert_close
from stcl.errors import MissingExtraError, SettingError
from stcl.models import BACKBONES, HEADS, HeadSettings, VideoSegmenter, build_segmenter
from stcl.models.backbones.base import as_map, as_tokens
from stcl.models.backbones.dinov2 import Dinov2, fit_patches
from stcl.models.backbones.segformer import MixTransformer, draw_kept
from stcl.models.heads import DaformerHead, MlpHead
from stcl.types import FramePair

CLASSES = 5


@cache
def mit() -> MixTransformer:
    torch.manual_seed(0)
    return stirred(MixTransformer("b0", input="imagenet")).eval()


@cache
def dinov2() -> Dinov2:
    torch.manual_seed(0)
    return stirred(Dinov2("small")).eval()


def stirred(module: nn.Module) -> nn.Module:
    """Away from zeros and ones, so that every parameter matters."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return module


def theirs() -> nn.Module:
    """The library's whole SegFormer with our weights, and with the eps that SegFormer was published with."""
    config = transformers.SegformerConfig(num_labels=CLASSES)
    network = transformers.SegformerForSemanticSegmentation(config).eval()
    network.segformer.load_state_dict(mit().encoder.state_dict())
    for name, layer in network.segformer.named_modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = 1e-5 if "patch_embeddings" in name or "sequence_reduction" in name else 1e-6
    return network


# ---- MiT ----


@pytest.mark.parametrize("size", [(64, 96), (61, 90)])
def test_mit_equals_the_library_with_the_published_eps(size):
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        ours = mit()(image)
        expected = theirs().segformer(mit().normalise(image), output_hidden_states=True).hidden_states
    assert len(expected) == len(ours)
    for mine, other in zip(ours.values(), expected, strict=True):
        assert_close(mine, other, NETWORK)


def test_every_eps_is_the_published_one():
    found = {}
    for name, layer in mit().encoder.named_modules():
        if isinstance(layer, nn.LayerNorm):
            found.setdefault(layer.eps, []).append(name)
    assert set(found) == {1e-5, 1e-6}
    assert all("patch_embeddings" in name or "sequence_reduction" in name for name in found[1e-5])
    assert len(found[1e-5]) == 4 + 3 * 2  # the last stage reduces nothing
    assert len(found[1e-6]) == 4 + 2 * 8


def test_mit_b5_is_the_published_one():
    with torch.device("meta"):
        network = build_segmenter(19, "mit_b5", "daformer", auxiliary=False)
    stages = network.backbone.encoder.stages
    assert [len(stage.blocks) for stage in stages] == [3, 6, 40, 3]
    assert [stage.blocks[0].attention.num_attention_heads for stage in stages] == [1, 2, 5, 8]
    assert [stage.blocks[0].attention.sequence_reduction_ratio for stage in stages] == [8, 4, 2, 1]
    assert network.head_stages == network.backbone.stages
    state = {name: tuple(tensor.shape) for name, tensor in network.head.state_dict().items()}
    assert [state[f"embed_layers.{level}.proj.weight"] for level in range(4)] == [
        (256, width) for width in (64, 128, 320, 512)
    ]
    assert state["fuse_layer.aspp_modules.0.conv.weight"] == (256, 1024, 1, 1)
    for branch in (1, 2, 3):
        assert state[f"fuse_layer.aspp_modules.{branch}.depthwise_conv.conv.weight"] == (1024, 1, 3, 3)
        assert state[f"fuse_layer.aspp_modules.{branch}.pointwise_conv.bn.running_var"] == (256,)
    assert state["fuse_layer.bottleneck.conv.weight"] == (256, 1024, 3, 3)
    assert state["conv_seg.weight"] == (19, 256, 1, 1) and state["conv_seg.bias"] == (19,)
    assert [module.depthwise_conv.conv.dilation[0] for module in network.head.fuse_layer.aspp_modules[1:]] == [
        6,
        12,
        18,
    ]


def test_gelu_is_exact():
    activation = mit().encoder.stages[0].blocks[0].mlp.activation_fn
    values = torch.linspace(-4, 4, 101, dtype=torch.float64)
    assert_close(activation(values), values * 0.5 * (1 + torch.erf(values / math.sqrt(2))))


def test_initial_weights_are_the_published_ones():
    torch.manual_seed(0)
    stage = MixTransformer("b0").encoder.stages[0].requires_grad_(False)
    assert stage.blocks[0].mlp.fc1.weight.std() == pytest.approx(0.02, rel=0.1)
    assert stage.patch_embeddings.proj.weight.std() == pytest.approx(math.sqrt(2 / (32 * 49)), rel=0.1)
    assert stage.blocks[0].mlp.dwconv.dwconv.weight.std() == pytest.approx(math.sqrt(2 / 9), rel=0.1)


def test_mit_normalises_either_input():
    grey = torch.full((1, 3, 1, 1), 0.5)
    published, imagenet = (MixTransformer("b0", input=kind).normalise(grey).flatten() for kind in INPUTS)
    assert_close(published, 127.5 - torch.tensor((104.00698793, 116.66876762, 122.67891434)))
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    assert_close(imagenet, (0.5 - mean) / std)


INPUTS = ("published", "imagenet")


def test_residual_branches_are_left_out_as_often_as_said_and_their_mean_stays():
    torch.manual_seed(0)
    kept = draw_kept(torch.zeros(20_000, 1), 0.2, training=True)
    assert kept.shape == (2, 20_000, 1, 1) and set(kept.unique().tolist()) == {0.0, 1.25}
    assert (kept == 0).float().mean() == pytest.approx(0.2, abs=0.01)
    assert kept.mean() == pytest.approx(1, abs=0.01)
    assert draw_kept(torch.zeros(2, 1), 0.2, training=False) is None
    assert draw_kept(torch.zeros(2, 1), 0.0, training=True) is None


def test_drop_path_rises_to_the_last_layer_and_draws_in_training_alone():
    backbone = MixTransformer("b0", drop_path=0.7)
    assert backbone.rates == pytest.approx([0.1 * number for number in range(8)])
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        once, twice = (backbone.train()(image)["stage4"] for _ in range(2))
        assert not torch.equal(once, twice)
        once, twice = (backbone.eval()(image)["stage4"] for _ in range(2))
        assert torch.equal(once, twice)


def test_tokens_and_maps_are_views_of_each_other():
    features = torch.rand(2, 3, 4, 5)
    tokens = as_tokens(features)
    assert torch.equal(tokens[1, 7], features[1, :, 1, 2])
    assert torch.equal(as_map(tokens, 4, 5), features) and as_map(tokens, 4, 5).data_ptr() == features.data_ptr()


# ---- DINOv2 ----


@pytest.mark.parametrize("size", [(56, 84), (28, 42)])
def test_dinov2_equals_the_library(size):
    config = transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, out_features=["stage3", "stage6", "stage9", "stage12"]
    )
    network = transformers.Dinov2Backbone(config).eval()
    left = network.load_state_dict(dinov2().encoder.state_dict(), strict=False)
    assert left.missing_keys == ["embeddings.mask_token"] and not left.unexpected_keys
    image = torch.rand(2, 3, *size)
    with torch.no_grad():
        expected = network(dinov2().normalise(image)).feature_maps
        for mine, other in zip(dinov2()(image).values(), expected, strict=True):
            assert_close(mine, other, NETWORK)


def test_a_frame_that_patches_do_not_divide_is_resized_evenly():
    assert fit_patches(torch.rand(1, 3, 28, 42)).shape[-2:] == (28, 42)
    ramp = torch.linspace(0.5, 63.5, 64).expand(1, 1, 32, 64) / 64  # value = place in the frame's width
    fitted = fit_patches(ramp)
    assert fitted.shape[-2:] == (42, 70)
    places = (torch.arange(70) + 0.5) / 70
    assert_close(fitted[0, 0, 5, 1:-1], places[1:-1])


def test_a_frozen_dinov2_learns_nothing_and_its_head_does():
    network = build_segmenter(CLASSES, "dinov2_small", "mlp", False, {"frozen": True}, {"width": 8})
    assert network.parameter_roles()["backbone"] == []
    assert [group["role"] for group in network.parameter_groups(0.1)] == ["heads", "fusion"]
    output = network(FramePair(torch.rand(2, 3, 32, 48)))
    assert output.logits.shape == (2, CLASSES, 6, 8)  # 3 x 4 cells, twice as fine
    output.logits.sum().backward()
    assert network.head.conv_seg.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.backbone.parameters())


def test_what_a_tap_changes_the_tokens_follow():
    """Doubling the norm's output by a tap moves the tokens so that the norm of them would be doubled, mean apart."""
    backbone, image = dinov2(), torch.rand(1, 3, 28, 42)
    with torch.no_grad():
        plain = backbone(image)
        same = backbone(image, lambda _, features: features.clone())
        tokens = torch.rand(1, 7, 384)
        change = torch.randn(1, 6, 384) * 0.1
        gain = backbone.encoder.layernorm.weight
        spread = tokens[:, 1:].std(-1, correction=0, keepdim=True)
        moved = backbone._follow(tokens, change) - tokens
    for stage, features in plain.items():
        assert_close(same[stage], features, NETWORK)
    assert moved[:, 0].abs().max() == 0
    large = gain.abs() > 0.1
    assert_close((moved[:, 1:] * gain / spread)[..., large], change[..., large], 1e-3)


# ---- heads ----


def test_mlp_head_equals_the_librarys():
    config = transformers.SegformerConfig(num_labels=CLASSES, decoder_hidden_size=16)
    expected = stirred(SegformerDecodeHead(config)).eval()
    head = MlpHead(tuple(config.hidden_sizes), CLASSES, HeadSettings(width=16)).eval()
    names = {"linear_projections": "embed_layers", "linear_fuse": "fuse.conv", "batch_norm": "fuse.bn"}
    names["classifier"] = "conv_seg"
    state = {}
    for name, tensor in expected.state_dict().items():
        before = next(before for before in names if name.startswith(before))
        state[name.replace(before, names[before])] = tensor
    head.load_state_dict(state)
    levels = [torch.rand(2, width, 16 // 2**level, 24 // 2**level) for level, width in enumerate(config.hidden_sizes)]
    with torch.no_grad():
        assert_close(head(*levels), expected(levels), NETWORK)


def test_daformer_head_follows_its_equation():
    """Written out with functions: linear maps, resized, concatenated in order, ASPP, bottleneck, scores."""
    torch.manual_seed(0)
    head = stirred(DaformerHead((3, 4), CLASSES, HeadSettings(dilations=(2, 3), width=6))).eval()
    fine, coarse = torch.rand(2, 3, 8, 12), torch.rand(2, 4, 4, 6)
    state = head.state_dict()
    with torch.no_grad():
        maps = []
        for level, features in enumerate((fine, coarse)):
            tokens = features.flatten(2).transpose(1, 2) @ state[f"embed_layers.{level}.proj.weight"].T
            tokens = tokens + state[f"embed_layers.{level}.proj.bias"]
            maps.append(tokens.transpose(1, 2).reshape(2, 6, *features.shape[-2:]))
        maps[1] = nn.functional.interpolate(maps[1], (8, 12), mode="bilinear", align_corners=False)
        joint = torch.cat(maps, dim=1)
        branches = [conv_bn_relu(state, "fuse_layer.aspp_modules.0", joint)]
        for number, dilation in ((1, 2), (2, 3)):
            name = f"fuse_layer.aspp_modules.{number}"
            deep = conv_bn_relu(state, f"{name}.depthwise_conv", joint, dilation, groups=12)
            branches.append(conv_bn_relu(state, f"{name}.pointwise_conv", deep))
        fused = conv_bn_relu(state, "fuse_layer.bottleneck", torch.cat(branches, dim=1))
        scores = nn.functional.conv2d(fused, state["conv_seg.weight"], state["conv_seg.bias"])
        assert_close(head(fine, coarse), scores, NETWORK)


def conv_bn_relu(state: dict[str, Tensor], name: str, features: Tensor, dilation: int = 1, groups: int = 1) -> Tensor:
    weight = state[f"{name}.conv.weight"]
    padding = dilation * (weight.shape[-1] // 2)
    hidden = nn.functional.conv2d(features, weight, padding=padding, dilation=dilation, groups=groups)
    mean, variance, scale, shift = (
        state[f"{name}.bn.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return ((hidden - mean) / (variance + 1e-5).sqrt() * scale + shift).relu()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["small", "resnet18", "mit_b0", "dinov2_small"])
def test_every_head_on_every_class_of_backbone_trains(kind, head):
    """With temporal fusion, checkpointing, channels_last and bfloat16; every trained parameter gets a gradient."""
    torch.manual_seed(0)
    narrow = {"width": 4, "dilations": (1,)} if "width" in HEADS[head].settings else {"dilations": (1,)}
    network = build_segmenter(CLASSES, kind, head, True, None, narrow).train()
    network.to(memory_format=torch.channels_last)
    network.backbone.gradient_checkpointing = True
    pair = FramePair(torch.rand(2, 3, 32, 48), torch.rand(2, 3, 32, 48), torch.ones(2, 2, 32, 48))
    with torch.autocast("cpu", torch.bfloat16):
        output = network(pair)
    assert output.logits.shape[:2] == (2, CLASSES) and output.previous_logits.shape == output.logits.shape
    (output.logits.float().square().mean() + output.aux.float().square().mean()).backward()
    without = [
        name for name, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert not without
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters() if parameter.requires_grad)


def test_heads_that_read_all_stages_follow_a_stream():
    torch.manual_seed(0)
    network = build_segmenter(CLASSES, "mit_b0", "mlp", False, None, {"width": 8}).eval()
    nn.init.normal_(network.fusion.conv.weight)
    frames, flow = torch.rand(2, 1, 3, 32, 48), torch.ones(1, 2, 32, 48)
    _, second = network.stream([(frames[0], None), (frames[1], flow)])
    with torch.no_grad():
        assert_close(second.logits, network(FramePair(frames[1], frames[0], flow)).logits, NETWORK)


def test_the_published_vit_gives_scores_at_a_quarter():
    network: VideoSegmenter = build_segmenter(CLASSES, "mit_b0", "daformer", False).eval()
    with torch.no_grad():
        assert network(FramePair(torch.rand(1, 3, 64, 96))).logits.shape == (1, CLASSES, 16, 24)


# ---- wrong settings ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "mit_b6"}, "Did you mean 'mit_b"),
        ({"backbone": "mit_b0", "backbone_settings": {"input": "image_net"}}, "Did you mean 'imagenet'"),
        (
            {"backbone": "mit_b0", "backbone_settings": {"drop_path": 1.0}},
            "drop_path is a probability below 1, not 1.0",
        ),
        ({"backbone": "mit_b0", "backbone_settings": {"width": 1}}, "Unknown setting of backbone 'mit_b0' 'width'"),
        ({"backbone": "dinov2_small", "backbone_settings": {"freeze": True}}, "Did you mean 'frozen'"),
        ({"head": "daformr"}, "Did you mean 'daformer'"),
        ({"head_settings": {"dilations": ()}}, "dilations are whole numbers from 1 on"),
        ({"head_settings": {"width": 0}}, "width and upsample are at least 1, not 0"),
        ({"head_settings": {"dropout": 1.0}}, "dropout is a probability below 1"),
    ],
)
def test_wrong_settings_name_the_right_ones(arguments, message):
    with pytest.raises(SettingError, match=message):
        build_segmenter(CLASSES, **arguments)


def test_without_the_library_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'transformers'.*stcl\[networks\]"):
        BACKBONES["mit_b0"]()


def test_a_copy_computes_the_same():
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert_close(deepcopy(mit())(image), mit()(image), NETWORK)
