"""Teachers and normalisation statistics."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from closeness import NETWORK, assert_close, relative_difference
from stcl.errors import SettingError
from stcl.models import (
    EmaTeacher,
    FrozenTeacher,
    PassStatistics,
    SelfTeacher,
    TeacherNetwork,
    VideoSegmenter,
    build_segmenter,
    inference_statistics,
    recalibrate,
)
from stcl.models.norms import norm_layers
from stcl.types import FramePair

KINDS = (EmaTeacher, FrozenTeacher, SelfTeacher)


@pytest.fixture
def student() -> VideoSegmenter:
    torch.manual_seed(0)
    return build_segmenter(5, backbone_settings={"width": 8}, head_settings={"width": 16, "dropout": 0.5})


def make_pair() -> FramePair:
    return FramePair(torch.rand(2, 3, 48, 64), torch.rand(2, 3, 48, 64), torch.randn(2, 2, 48, 64))


def train_a_little(network: VideoSegmenter) -> None:
    """Move every parameter and statistic."""
    network.train()
    network(make_pair())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_teacher_changes_nothing_and_drops_nothing(
    student: VideoSegmenter, kind: type[TeacherNetwork], statistics: PassStatistics
) -> None:
    student.train()
    teacher = kind(student, statistics=statistics).train()
    before = state_of(student), state_of(teacher)
    modes = [layer.training for layer in student.modules()]
    pair = make_pair()
    first, second = teacher(pair), teacher(pair)
    assert_close(first.logits, second.logits, 0.0)
    assert not first.logits.requires_grad
    assert_close((state_of(student), state_of(teacher)), before, 0.0)
    assert [layer.training for layer in student.modules()] == modes
    assert all(layer.track_running_stats for layer in norm_layers(student))


def test_statistics_are_those_asked_for(student: VideoSegmenter) -> None:
    pair = make_pair()
    batch, running = EmaTeacher(student, statistics="batch")(pair), EmaTeacher(student, statistics="running")(pair)
    assert_close(running.logits, student.eval()(pair).logits, NETWORK)
    assert relative_difference(batch.logits, running.logits) > 0.01
    for layer in student.modules():
        layer.training = isinstance(layer, nn.BatchNorm2d)  # batch statistics, no dropout
    both = student.frame_scores(torch.cat((pair.current, pair.previous)))  # of both frames of a pair together
    assert_close(batch.logits, both.main[:2], NETWORK)  # W is still [identity, 0]


def test_average_is_exact(student: VideoSegmenter) -> None:
    teacher = EmaTeacher(student, momentum=0.9, warm_up=False)
    old = state_of(teacher.network)
    train_a_little(student)
    teacher.update(student, step=0)
    for name, value in teacher.network.state_dict().items():
        new = student.state_dict()[name]
        expected = 0.9 * old[name] + 0.1 * new if value.is_floating_point() else new
        assert_close(value, expected)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_warm_up_of_the_momentum(student: VideoSegmenter) -> None:
    teacher = EmaTeacher(student, momentum=0.9)
    assert [teacher.momentum_at(step) for step in (0, 1, 3, 100)] == [0, 0.5, 0.75, 0.9]
    train_a_little(student)
    teacher.update(student, step=0)
    assert_close(state_of(teacher.network), state_of(student), 0.0)


def test_frozen_teacher_moves_by_reset_alone(student: VideoSegmenter) -> None:
    teacher, pair = FrozenTeacher(student, steps=5), make_pair()
    before = state_of(teacher)
    train_a_little(student)
    teacher(pair, step=3)
    assert_close(state_of(teacher), before, 0.0)
    teacher(pair, step=0)  # the warm-up ends here
    assert_close(state_of(teacher.network), state_of(student), 0.0)
    assert teacher.network_at(4) is teacher.network and teacher.network_at(5) is student
    assert FrozenTeacher(student).network_at(10**6) is not student


def test_self_teacher_is_the_student(student: VideoSegmenter) -> None:
    teacher = SelfTeacher(student)
    assert teacher.network_at(3) is student and not teacher.state_dict() and not list(teacher.parameters())


def test_teacher_resumes_from_its_state(student: VideoSegmenter) -> None:
    teacher = EmaTeacher(student, momentum=0.5)
    train_a_little(student)
    teacher.update(student, step=5)
    other = EmaTeacher(student, momentum=0.5)
    other.load_state_dict(teacher.state_dict())
    pair = make_pair()
    assert_close(other(pair).logits, teacher(pair).logits, 0.0)


def test_unknown_statistics(student: VideoSegmenter) -> None:
    with pytest.raises(SettingError, match="Unknown normalisation statistics 'bach'"):
        EmaTeacher(student, statistics="bach")(make_pair())  # type: ignore[arg-type]


def test_modes_come_back_after_an_error(student: VideoSegmenter) -> None:
    student.train()
    with pytest.raises(RuntimeError, match="stop"), inference_statistics(student, "batch"):
        raise RuntimeError("stop")
    assert all(layer.training for layer in student.modules())


class ToyNetwork(nn.Module):
    """A batch norm that sees the frame itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, momentum=0.3)

    def forward(self, pair: FramePair) -> Tensor:
        return self.norm(pair.current)


def test_recalibration_gives_the_true_moments() -> None:
    network = ToyNetwork().train()
    frames = torch.randn(4, 2, 3, 6, 7) * 3 + 2
    assert recalibrate(network, (FramePair(batch) for batch in frames)) == 8
    pixels = frames.permute(0, 2, 1, 3, 4).flatten(2)  # (batches, 3, pixels)
    assert_close(network.norm.running_mean, pixels.mean(-1).mean(0))
    assert_close(network.norm.running_var, pixels.var(-1).mean(0))
    assert network.training and network.norm.training and network.norm.momentum == 0.3


def test_recalibration_looks_at_current_frames_alone(student: VideoSegmenter) -> None:
    """Of a pair, that is: without gradient a network passes both frames at once and holds its statistics still."""
    pairs = [make_pair() for _ in range(2)]
    expected, found = deepcopy(student), deepcopy(student)
    recalibrate(expected, [FramePair(pair.current) for pair in pairs])
    assert recalibrate(found, pairs) == 4
    assert not torch.equal(found.backbone.stem[1].running_mean, student.backbone.stem[1].running_mean)
    assert_close(state_of(found), state_of(expected), 0)


def test_recalibrated_network_normalises_the_new_domain(student: VideoSegmenter) -> None:
    pairs = [FramePair(torch.rand(4, 3, 48, 64) * 0.3 + 0.6) for _ in range(2)]
    recalibrate(student.eval(), pairs)
    outputs: list[Tensor] = []
    # the ReLU behind the norm works in place, hence the clone
    keep = student.backbone.stem[1].register_forward_hook(lambda *call: outputs.append(call[-1].clone()))
    with torch.no_grad():
        student(pairs[0])
    keep.remove()
    moments = outputs[0].mean((0, 2, 3)), outputs[0].var((0, 2, 3))
    assert_close(moments, (torch.zeros(8), torch.ones(8)), 0.05, scale=1)


def test_recalibration_without_frames_keeps_the_statistics() -> None:
    network = ToyNetwork()
    before = state_of(network)
    with pytest.raises(SettingError, match="no frame"):
        recalibrate(network, [])
    assert_close(state_of(network), before)
