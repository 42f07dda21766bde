"""The share of a frame that flow leaves unexplained."""

import pytest
import torch

from closeness import SAMPLED, assert_close
from stcl.ops.cuts import unexplained


def flow_of(u: float, v: float = 0.0, size: tuple[int, int] = (24, 32)) -> torch.Tensor:
    return torch.tensor((u, v)).view(1, 2, 1, 1).expand(1, 2, *size)


def test_a_moved_frame_is_explained_by_its_flow() -> None:
    frame = torch.rand(1, 3, 24, 32)
    previous = frame.roll(3, -1)  # frame[x] = previous[x + 3]
    assert_close(unexplained(frame, previous, flow_of(3)), torch.zeros(1), SAMPLED, scale=1)
    assert unexplained(frame, previous, flow_of(0)) > 0.5


def test_the_mean_colour_explains_nothing() -> None:
    frame = torch.rand(2, 3, 24, 32)
    plain = frame.mean((2, 3), keepdim=True).expand_as(frame)
    assert_close(unexplained(frame, plain, flow_of(0).expand(2, -1, -1, -1)), torch.ones(2))


def test_contrast_does_not_matter() -> None:
    frame, previous = torch.rand(1, 3, 24, 32), torch.rand(1, 3, 24, 32)
    dim = unexplained(frame * 0.2, previous * 0.2, flow_of(0))
    assert_close(dim, unexplained(frame, previous, flow_of(0)))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_plain_frames_are_no_cut_after_each_other(value: float) -> None:
    frame = torch.full((1, 3, 24, 32), value)
    assert unexplained(frame, frame, flow_of(0)) == 0
    assert unexplained(frame, 1 - frame, flow_of(0)) > 1


def test_flow_that_leaves_the_frame_explains_nothing() -> None:
    frame = torch.rand(1, 3, 24, 32)
    assert unexplained(frame, frame, flow_of(1000)) > 1
