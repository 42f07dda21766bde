"""Networks that give pseudo labels: an average of the student, a frozen copy of it, or the student itself.

Sources: mean teacher (Tarvainen and Valpola 2017, arXiv 1703.01780); the published STCL recipe labels with a frozen
warm-start network first and with the student itself later (method section 4).
"""

from copy import deepcopy

import torch
from torch import Tensor, nn

from stcl.models.norms import PassStatistics, inference_statistics
from stcl.models.segmenter import VideoSegmenter
from stcl.types import FramePair, SegOutput


class TeacherNetwork(nn.Module):
    """Segments without gradient, without dropout and without moving any running statistics.

    Args:
        student: the network that is trained; its weights are not part of the state.
        statistics: ``batch`` normalises with the frames that it segments, both of each pair and all pairs together;
            ``running`` with stored statistics.
    """

    def __init__(self, student: VideoSegmenter, statistics: PassStatistics = "batch") -> None:
        super().__init__()
        self.statistics = statistics
        self._student = (student,)  # in a tuple: no sub-module, so that its weights are not saved twice

    def network_at(self, step: int) -> VideoSegmenter:
        """The network that labels frames ``step`` optimiser steps after the warm-up."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "TeacherNetwork":
        """Does nothing to the parts: a teacher has no training mode."""
        self.training = mode
        return self

    @torch.no_grad()
    def forward(self, pair: FramePair, step: int = 0) -> SegOutput:
        """Segment ``pair`` with the network of ``step``; scores without gradient."""
        network = self.network_at(step)
        with inference_statistics(network, self.statistics):
            output: SegOutput = network(pair)
        if network is self._student[0]:  # weights cast here have no gradient, and older torch would use them again
            torch.clear_autocast_cache()
        return output


class SelfTeacher(TeacherNetwork):
    """The student labels every frame. There is nothing to update and nothing in the state."""

    def network_at(self, step: int) -> VideoSegmenter:
        """The student at any step."""
        return self._student[0]


class _CopyTeacher(TeacherNetwork):
    """A copy of the student, which is the state."""

    def __init__(self, student: VideoSegmenter, statistics: PassStatistics = "batch") -> None:
        super().__init__(student, statistics)
        self.copy: VideoSegmenter = deepcopy(student).requires_grad_(False).eval()
        self.copy.zero_grad(set_to_none=True)

    @property
    def network(self) -> VideoSegmenter:
        """The copy."""
        return self.copy

    def network_at(self, step: int) -> VideoSegmenter:
        """The copy at any step."""
        return self.copy

    @torch.no_grad()
    def reset(self, student: VideoSegmenter) -> None:
        """Become a copy of ``student`` as it is now."""
        self.copy.load_state_dict(student.state_dict())


class FrozenTeacher(_CopyTeacher):
    """The student as it stood after the warm-up labels for ``steps`` steps (None: always), then the student itself."""

    def __init__(self, student: VideoSegmenter, statistics: PassStatistics = "batch", steps: int | None = None) -> None:
        super().__init__(student, statistics)
        self.steps = steps

    def network_at(self, step: int) -> VideoSegmenter:
        """At step 0 the student is copied anew."""
        if self.steps is not None and step >= self.steps:
            return self._student[0]
        if step == 0:
            self.reset(self._student[0])
        return self.copy


class EmaTeacher(_CopyTeacher):
    """A moving average of the student, which :meth:`update` moves after every optimiser step.

    Args:
        student: the network that is trained.
        momentum: share of the teacher that an update keeps.
        statistics: see :class:`TeacherNetwork`.
        warm_up: let early updates follow faster: the momentum of update ``step`` is at most ``1 - 1 / (step + 1)``.
    """

    def __init__(
        self,
        student: VideoSegmenter,
        momentum: float = 0.999,
        statistics: PassStatistics = "batch",
        warm_up: bool = True,
    ) -> None:
        super().__init__(student, statistics)
        self.momentum = momentum
        self.warm_up = warm_up

    def momentum_at(self, step: int) -> float:
        """Momentum of update ``step`` (0, 1, ...)."""
        return min(self.momentum, 1 - 1 / (step + 1)) if self.warm_up else self.momentum

    @torch.no_grad()
    def update(self, student: VideoSegmenter, step: int) -> None:
        """``teacher <- m teacher + (1 - m) student`` for parameters and running statistics; counters are copied.

        Args:
            student: the network after its optimiser step.
            step: number of this update, from 0; it only sets the warm-up.
        """
        means, counters = _state(self.copy)
        values, counts = _state(student)
        torch._foreach_lerp_(means, values, 1 - self.momentum_at(step))
        if counters:
            torch._foreach_copy_(counters, counts)


def _state(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and floating-point buffers, and the other buffers, in a fixed order."""
    buffers = list(network.buffers())
    averaged = [*network.parameters(), *filter(torch.is_floating_point, buffers)]
    return averaged, [buffer for buffer in buffers if not buffer.is_floating_point()]
