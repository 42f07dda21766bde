"""Gradient checkpointing changes what is kept for the backward pass, and nothing else."""

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from stcl.models import BACKBONES, Backbone, Tap, build_segmenter, hold_statistics
from stcl.models.norms import norm_layers
from stcl.types import FramePair


class Outcome(NamedTuple):
    features: dict[str, Tensor]
    gradients: list[Tensor]
    buffers: list[Tensor]
    kept_bytes: int


def outcome(backbone: Backbone, image: Tensor, tap: Tap | None = None, precision: torch.dtype | None = None) -> Outcome:
    """A training step's passes through ``backbone``, and how much the forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in backbone.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(0)  # some backbones leave out residual branches at random
    autocast = torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        features = backbone(image, tap)
    sum(map_.float().square().mean() for map_ in features.values()).backward()
    gradients = [parameter.grad for parameter in backbone.parameters() if parameter.grad is not None]
    return Outcome(features, gradients, [buffer.clone() for buffer in backbone.buffers()], sum(kept.values()))


def same(one: Outcome, other: Outcome) -> None:
    assert_close(other.features, one.features)
    assert_close(other.gradients, one.gradients)
    assert_close(other.buffers, one.buffers)


@pytest.fixture(scope="module")
def fresh(kind: str) -> Callable[[], tuple[Backbone, Backbone]]:
    """Two equal backbones in training mode, the second one with gradient checkpointing."""
    torch.manual_seed(0)
    backbone = BACKBONES[kind]().train()

    def make() -> tuple[Backbone, Backbone]:
        plain, saving = deepcopy(backbone), deepcopy(backbone)
        saving.gradient_checkpointing = True
        return plain, saving

    return make


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_it_saves_memory_and_changes_nothing(fresh, precision):
    plain, saving = fresh()
    image = torch.rand(2, 3, 32, 64)
    one, other = outcome(plain, image, None, precision), outcome(saving, image, None, precision)
    same(one, other)
    assert len(one.gradients) == sum(parameter.requires_grad for parameter in plain.parameters())
    assert other.kept_bytes < 0.3 * one.kept_bytes


def test_running_statistics_move_once(fresh):
    _, saving = fresh()
    before = [layer.running_mean.clone() for layer in norm_layers(saving)]
    outcome(saving, torch.rand(2, 3, 32, 32))
    for layer, mean in zip(norm_layers(saving), before, strict=True):
        assert layer.num_batches_tracked == 1
        assert not torch.equal(layer.running_mean, mean)
        assert layer.momentum == 0.1


def test_a_tap_works(fresh):
    """Feature-level fusion replaces a stage's output; gradients run through what it returns."""
    plain, saving = fresh()
    stage = plain.stages[2]

    def tap(name: str, features: Tensor) -> Tensor:
        return 0.3 * features.flip(0) + 0.7 * features if name == stage else features

    image = torch.rand(2, 3, 32, 32)
    same(outcome(plain, image, tap), outcome(saving, image, tap))


def test_several_passes_before_one_backward_pass(fresh):
    """Source and target pass before the gradients of both are computed, and a teacher in between."""
    results = []
    images = torch.rand(2, 2, 3, 32, 32)
    for backbone in fresh():
        torch.manual_seed(0)
        first = backbone(images[0])[backbone.stages[-1]]
        with torch.no_grad(), hold_statistics(backbone):
            backbone(images[1])
        second = backbone(images[1])[backbone.stages[-2]]
        (first.square().mean() + second.square().mean()).backward()
        results.append([parameter.grad for parameter in backbone.parameters()] + list(backbone.buffers()))
    assert_close(results[1], results[0])


def test_without_gradients_nothing_is_computed_twice(fresh):
    _, saving = fresh()
    calls = []
    part = next(module for module in saving.modules() if isinstance(module, torch.nn.Conv2d))
    part.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        saving(torch.rand(1, 3, 32, 32))
    assert len(calls) == 1
    saving.eval()(torch.rand(1, 3, 32, 32))[saving.stages[0]].sum().backward()
    assert len(calls) == 3


def test_a_segmenter_trains_alike():
    torch.manual_seed(0)
    network = build_segmenter(5, backbone_settings={"width": 8}, head_settings={"dropout": 0.0}).train()
    saving = deepcopy(network)
    saving.backbone.gradient_checkpointing = True
    pair = FramePair(torch.rand(2, 3, 32, 64), torch.rand(2, 3, 32, 64), torch.zeros(2, 2, 32, 64))
    for each in (network, saving):
        each(pair).logits.square().mean().backward()
    for one, other in zip(network.parameters(), saving.parameters(), strict=True):
        assert_close(other.grad, one.grad)
    assert_close(saving.state_dict(), network.state_dict())
