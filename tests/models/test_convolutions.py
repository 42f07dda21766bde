import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from closeness import TOLERANCES, assert_close
from stcl.models import HEADS, build_segmenter
from stcl.models.convolutions import DilatedConv2d, StridedPointwise

LANES = 16
"""Floats in the widest vector of today's processors, AVX-512's."""

TRAIN_NARROW = """
import torch
from torch import nn
from stcl.models.backbones.small import ResidualBlock

for channels in (1, 3, 4, 7):
    block = ResidualBlock(channels, 8, nn.BatchNorm2d, stride=2).to(memory_format=torch.channels_last)
    for _ in range(30):
        features = torch.randn(4, channels, 16, 32).contiguous(memory_format=torch.channels_last)
        block(features.requires_grad_()).sum().backward()
"""


def forbidden(network: nn.Module) -> list[nn.Conv2d]:
    """Convolutions whose weight gradient oneDNN cannot compute in ``channels_last``, see ``models/convolutions.py``."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert layers
    return [
        layer
        for layer in layers
        if (max(layer.kernel_size) == 1 and max(layer.stride) > 1 and layer.in_channels // layer.groups < LANES)
        or (max(layer.dilation) > 1 and not isinstance(layer, DilatedConv2d))
    ]


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_strided_convolution(stride, memory_format):
    torch.manual_seed(0)
    ours, plain = StridedPointwise(16, 24, stride), nn.Conv2d(16, 24, 1, stride, bias=False)
    ours.load_state_dict(plain.state_dict())
    features = torch.randn(2, 16, 17, 30).contiguous(memory_format=memory_format)
    with torch.no_grad():
        found, wanted = ours(features), plain(features)
    assert found.is_contiguous(memory_format=memory_format)
    assert_close(found, wanted)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_dilated_convolution_has_the_gradient_of_its_definition_in_half_precision(memory_format):
    """At sizes where the plain one had another gradient, or read behind the features, and at one that it has right."""
    for channels, outputs, groups, dilation in ((56, 56, 56, 6), (39, 39, 39, 6), (36, 35, 1, 2), (32, 16, 1, 6)):
        torch.manual_seed(0)
        layer = DilatedConv2d(channels, outputs, 3, padding=dilation, dilation=dilation, groups=groups)
        layer = layer.to(memory_format=memory_format)
        features = torch.randn(2, channels, 33, 65).contiguous(memory_format=memory_format)
        cotangent = torch.randn(2, outputs, 33, 65).contiguous(memory_format=memory_format)
        (wanted,) = torch.autograd.grad(layer(features), layer.weight, cotangent)
        with torch.autocast("cpu", torch.bfloat16):
            half = layer(features)
        (found,) = torch.autograd.grad(half, layer.weight, cotangent.to(half.dtype))
        assert_close(found, wanted, TOLERANCES[torch.bfloat16])


def test_narrow_networks_train_on_a_processor_without_avx512():
    """In a process of its own: what went wrong there would hang or kill it."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", TRAIN_NARROW]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, f"{result.returncode}\n{result.stderr}"


@pytest.mark.parametrize("head", HEADS)
def test_no_network_has_a_convolution_that_cannot_be_trained_everywhere(kind, head):
    for settings in [{"width": width} for width in (1, 4, 9, 15)] if kind == "small" else [{}]:
        with torch.device("meta"):
            narrow = {"width": 1} if "width" in HEADS[head].settings else {}
            network = build_segmenter(1, kind, head, backbone_settings=settings, head_settings=narrow)
        assert not forbidden(network), settings


def test_the_forbidden_convolution_is_seen():
    wrong = [nn.Conv2d(4, 8, 1, 2), nn.Conv2d(15, 8, 1, 4), nn.Conv2d(32, 8, 1, 2, groups=4)]
    wrong += [nn.Conv2d(24, 8, 3, dilation=2), nn.Conv2d(32, 32, 3, dilation=6, groups=32)]
    right = [nn.Conv2d(16, 8, 1, 2), nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, 2), DilatedConv2d(24, 8, 3, dilation=2)]
    assert forbidden(nn.Sequential(*wrong, *right)) == wrong
