"""Fusion, gradients, streaming and parameter roles of the segmenter."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from closeness import NETWORK, SAMPLED, assert_close
from stcl.errors import SettingError
from stcl.models import SelfTeacher, VideoSegmenter, build_segmenter
from stcl.models.fusion import ScoreFusion, align_previous
from stcl.models.norms import norm_layers
from stcl.models.segmenter import segment_together
from stcl.types import FramePair


@pytest.fixture
def network() -> VideoSegmenter:
    torch.manual_seed(0)
    return build_segmenter(5, backbone_settings={"width": 8}, head_settings={"width": 16})


def make_pair(batch: int = 2, flow: float = 3.0) -> FramePair:
    size = (48, 64)
    return FramePair(torch.rand(batch, 3, *size), torch.rand(batch, 3, *size), torch.full((batch, 2, *size), flow))


def mix_strongly(network: VideoSegmenter) -> None:
    """Let the previous frame matter: W away from its initial [identity, 0]."""
    torch.nn.init.normal_(network.fusion.conv.weight)


def test_first_fusion_is_the_current_scores(network: VideoSegmenter) -> None:
    network.eval()
    pair = make_pair()
    fused, single = network(pair), network(FramePair(pair.current))
    assert_close(fused.logits, single.logits, NETWORK)
    assert_close(fused.aux, single.aux, NETWORK)
    assert single.previous_logits is None and fused.previous_logits.shape == fused.logits.shape
    assert fused.logits.shape == (2, 5, 12, 16) and fused.aux.shape == (2, 5, 6, 8)
    assert tuple(fused.features) == network.backbone.stages


def test_previous_frame_gets_no_gradient(network: VideoSegmenter) -> None:
    mix_strongly(network)
    pair = make_pair()
    pair.current.requires_grad_()
    pair.previous.requires_grad_()
    output = network(pair)
    (output.logits.sum() + output.aux.sum()).backward()
    assert pair.current.grad is not None and pair.current.grad.abs().sum() > 0
    assert pair.previous.grad is None
    assert not output.previous_logits.requires_grad
    assert network.fusion.conv.weight.grad[:, 5:].abs().sum() > 0  # but W learns how to use it


def test_previous_frame_does_not_move_the_statistics(network: VideoSegmenter) -> None:
    twin = build_segmenter(5, backbone_settings={"width": 8}, head_settings={"width": 16})
    twin.load_state_dict(network.state_dict())
    pair = make_pair()
    network(pair)
    twin(FramePair(pair.current))
    for layer, other in zip(norm_layers(network), norm_layers(twin), strict=True):
        assert_close(layer.running_mean, other.running_mean, NETWORK)
        assert_close(layer.running_var, other.running_var, NETWORK)
        assert layer.num_batches_tracked == 1 and layer.track_running_stats


@pytest.mark.parametrize("training", [False, True])
def test_without_gradient_both_frames_pass_as_one_batch(network: VideoSegmenter, training: bool) -> None:
    mix_strongly(network)
    network.train(training)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Dropout2d):
            layer.p = 0.0
    pair, seen = make_pair(), []
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    both = network.eval().frame_scores(pair.current) if not training else None
    network.train(training).backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with torch.no_grad():
        output = network(pair)
    assert seen == [2 * len(pair.current)]
    assert all(len(features) == len(pair.current) for features in output.features.values())
    assert output.aux is None  # for training alone
    for name, tensor in network.state_dict().items():  # no running statistics move, in training mode neither
        assert torch.equal(tensor, before[name]), name
    if both is not None:
        assert_close(output.logits, network(pair).logits, NETWORK)
        assert_close(output.features, both.features, NETWORK)


def test_warp_by_whole_cells_is_a_shift() -> None:
    """Cells of a grid of the image's size: a flow of (2, 1) px reads two columns right, one row below."""
    previous, current = torch.rand(1, 3, 8, 10), torch.rand(1, 3, 8, 10)
    flow = torch.tensor((2.0, 1.0)).view(1, 2, 1, 1).expand(1, 2, 8, 10)
    aligned = align_previous(previous, current, flow)
    assert_close(aligned[..., :-1, :-2], previous[..., 1:, 2:], SAMPLED)
    fusion = ScoreFusion(3)
    with torch.no_grad():
        fusion.conv.weight.copy_(fusion.conv.weight.roll(3, dims=1))  # [0, identity]
    assert_close(fusion(current, aligned), aligned)


def test_flow_is_scaled_per_axis_to_the_scores() -> None:
    previous, current = torch.rand(1, 3, 8, 10), torch.rand(1, 3, 8, 10)
    flow = torch.tensor((4.0, 2.0)).view(1, 2, 1, 1).expand(1, 2, 16, 40)  # = 1 cell right, 1 cell down
    aligned = align_previous(previous, current, flow)
    assert_close(aligned[..., :-1, :-1], previous[..., 1:, 1:], SAMPLED)


def test_still_pixels_take_the_current_score() -> None:
    previous, current = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8, requires_grad=True)
    still = torch.zeros(1, 8, 8, dtype=torch.bool)
    still[:, :, :4] = True
    aligned = align_previous(previous, current, torch.zeros(1, 2, 8, 8), still)
    assert_close(aligned[..., :4], current[..., :4].detach())
    assert_close(aligned[..., 4:], previous[..., 4:], SAMPLED)
    assert not aligned.requires_grad


def test_segmenter_uses_the_still_mask(network: VideoSegmenter) -> None:
    network.eval()
    pair = make_pair()._replace(still=torch.ones(2, 48, 64, dtype=torch.bool))
    assert_close(network(pair).previous_logits, network.frame_scores(pair.current).main, NETWORK)


def test_tap_sees_the_current_frame_alone(network: VideoSegmenter) -> None:
    seen: list[str] = []

    def tap(stage: str, features: Tensor) -> Tensor:
        seen.append(stage)
        return features

    network(make_pair(), tap)
    assert tuple(seen) == network.backbone.stages


def test_pair_without_flow_is_refused(network: VideoSegmenter) -> None:
    with pytest.raises(SettingError, match="flow"):
        network(make_pair()._replace(flow=None))


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_stream_equals_pairs(network: VideoSegmenter, batch: int) -> None:
    network.eval()
    mix_strongly(network)
    frames = torch.rand(4, 1, 3, 48, 64)
    flows = [None, *torch.randn(3, 1, 2, 48, 64).mul(4)]
    outputs = list(network.stream(zip(frames, flows, strict=True), batch=batch))
    assert len(outputs) == 4 and not outputs[1].logits.requires_grad
    assert outputs[0].previous_logits is None
    for t in range(1, 4):
        expected = network(FramePair(frames[t], frames[t - 1], flows[t]))
        assert_close(outputs[t].logits, expected.logits, NETWORK)
        assert_close(outputs[t].previous_logits, expected.previous_logits, NETWORK)


def test_stream_leaves_out_what_serves_training_alone(network: VideoSegmenter) -> None:
    network.eval()
    seen: list[int] = []
    network.aux_head.register_forward_hook(lambda *_: seen.append(1))
    network.backbone.register_forward_hook(lambda *_: seen.append(2))
    frames = [(torch.rand(1, 3, 48, 64), None if t == 0 else torch.zeros(1, 2, 48, 64)) for t in range(3)]
    for output in network.stream(frames):
        assert output.aux is None and output.features == {}
    assert seen == [2, 2, 2]  # each frame once, the auxiliary head never


def test_stream_restarts_where_the_flow_is_missing(network: VideoSegmenter) -> None:
    network.eval()
    mix_strongly(network)
    frames, flow = torch.rand(3, 1, 3, 48, 64), torch.ones(1, 2, 48, 64)
    cut = [output.logits for output in network.stream(zip(frames, (None, flow, None), strict=True))]
    assert_close(cut[2], network(FramePair(frames[2])).logits, NETWORK)


def stream_and_count(network: VideoSegmenter, count: int, every: int) -> list[int]:
    """Tensors alive while a video of ``count`` frames passes, counted at every ``every``-th of them."""
    network.eval()
    flow = torch.zeros(1, 2, 32, 32)
    frames = ((torch.rand(1, 3, 32, 32), None if t == 0 else flow) for t in range(count))
    alive = []
    for t, _ in enumerate(network.stream(frames)):
        if t % every == every - 1:
            gc.collect()
            alive.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    return alive


def test_stream_keeps_no_more_than_one_frame(network: VideoSegmenter) -> None:
    assert len(set(stream_and_count(network, 40, 10))) == 1


@pytest.mark.slow
def test_memory_is_flat_over_a_long_stream(network: VideoSegmenter, resident_mb: Callable[[], float]) -> None:
    stream_and_count(network, 1000, 1000)  # allocators fill their pools
    before = resident_mb()
    assert len(set(stream_and_count(network, 20_000, 5000))) == 1
    assert resident_mb() - before < 20


def test_stream_that_starts_with_flow_is_refused(network: VideoSegmenter) -> None:
    with pytest.raises(SettingError, match="first frame"):
        next(network.stream([(torch.rand(1, 3, 48, 64), torch.zeros(1, 2, 48, 64))]))


@pytest.mark.parametrize("auxiliary", [True, False])
def test_groups_hold_every_trainable_parameter_once(auxiliary: bool) -> None:
    network = build_segmenter(5, auxiliary=auxiliary, backbone_settings={"width": 8, "freeze_norm_affine": True})
    groups = network.parameter_groups(rate=0.1, head_factor=10, weight_decay=1e-4)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    assert {group["role"]: group["lr"] for group in groups} == {"backbone": 0.1, "heads": 1.0, "fusion": 0.1}
    assert {group["weight_decay"] for group in torch.optim.SGD(groups).param_groups} == {1e-4}
    optimizer = torch.optim.SGD(network.parameter_groups(rate=0.1), weight_decay=0.3)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3}  # the optimiser's own is not hidden


@pytest.mark.parametrize("backbone", ["small", "mit_b0"])
@pytest.mark.parametrize("decayed", ["all", "all_but_norms", "weights"])
def test_what_does_not_decay_is_a_group_of_its_own(backbone: str, decayed: str) -> None:
    network = build_segmenter(5, backbone, "mlp", head_settings={"width": 8})
    groups = network.parameter_groups(0.1, 10, 1e-2, decayed)
    found = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    roles = {id(p): role for role, parameters in network.parameter_roles().items() for p in parameters}
    norms = (torch.nn.BatchNorm2d, torch.nn.LayerNorm)
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            vector = isinstance(module, norms) if decayed == "all_but_norms" else name == "bias" or parameter.ndim == 1
            free = vector and decayed != "all"
            group = found[id(parameter)]
            assert group["weight_decay"] == (0.0 if free else 1e-2)
            assert group["role"] == roles[id(parameter)]
            assert group["lr"] == pytest.approx(1.0 if group["role"] == "heads" else 0.1)


def test_an_unknown_choice_of_what_decays_is_refused(network: VideoSegmenter) -> None:
    with pytest.raises(SettingError, match="Did you mean 'weights'"):
        network.parameter_groups(0.1, decayed="weight")  # type: ignore[arg-type]


def test_without_auxiliary_head() -> None:
    network = build_segmenter(5, head="tps", auxiliary=False, backbone_settings={"width": 8})
    assert network(make_pair()).aux is None


# ---- without temporal fusion ----


@pytest.fixture
def single() -> VideoSegmenter:
    """Segments each frame by itself; the same weights as ``network``."""
    torch.manual_seed(0)
    return build_segmenter(5, backbone_settings={"width": 8}, head_settings={"width": 16}, fusion="none")


def test_without_fusion_the_other_weights_are_the_same(network: VideoSegmenter, single: VideoSegmenter) -> None:
    state, own = network.state_dict(), single.state_dict()
    assert {name for name in state if name not in own} == {"fusion.conv.weight"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())


@pytest.mark.parametrize("gradient", [True, False])
def test_without_fusion_the_previous_frame_is_not_encoded(single: VideoSegmenter, gradient: bool) -> None:
    single.eval()
    pair, seen = make_pair(), []
    single.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with torch.set_grad_enabled(gradient):
        output, alone = single(pair), single(FramePair(pair.current))
    assert seen == [2, 2]
    assert torch.equal(output.logits, alone.logits) and output.previous_logits is None
    assert torch.equal(single(pair._replace(previous=pair.previous * 0)).logits, output.logits)


def test_without_fusion_a_teacher_and_joint_pairs_see_single_frames(single: VideoSegmenter) -> None:
    single.eval()
    pair, other = make_pair(), make_pair()
    alone = [single(FramePair(each.current)).logits.detach() for each in (pair, other)]
    answer = SelfTeacher(single, statistics="running")(pair)
    assert_close(answer.logits, alone[0], NETWORK)
    shared = pair._replace(previous=other.previous)
    for output, expected in zip(
        segment_together(single, [pair, shared, other]), [*alone[:1] * 2, alone[1]], strict=True
    ):
        assert_close(output.logits.detach(), expected, NETWORK)


def test_without_fusion_a_stream_segments_each_frame(single: VideoSegmenter) -> None:
    single.eval()
    frames = torch.rand(3, 1, 3, 48, 64)
    flows = [None, *torch.randn(2, 1, 2, 48, 64).mul(4)]
    for output, frame in zip(single.stream(zip(frames, flows, strict=True)), frames, strict=True):
        assert_close(output.logits, single(FramePair(frame)).logits, NETWORK)


def test_without_fusion_there_is_no_group_for_it(single: VideoSegmenter) -> None:
    assert single.parameter_roles()["fusion"] == []
    groups = single.parameter_groups(rate=0.1)
    assert [group["role"] for group in groups] == ["backbone", "heads"]
    assert sum(len(group["params"]) for group in groups) == len(list(single.parameters()))
