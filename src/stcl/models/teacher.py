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
        student: the network that is trained; a copy of it is the state.
        statistics: ``batch`` normalises with the frames that it segments, both of each pair and all pairs together;
            ``running`` with stored statistics.
    """

    copies = True

    def __init__(self, student: VideoSegmenter, statistics: PassStatistics = "batch") -> None:
        super().__init__()
        self.statistics = statistics
        self._student = (student,)  # in a tuple: no sub-module, so that its weights are not saved twice
        self.copy: VideoSegmenter | None = None
        if self.copies:
            self.copy = deepcopy(student).requires_grad_(False).eval()
            self.copy.zero_grad(set_to_none=True)

    @property
    def network(self) -> VideoSegmenter:
        """The copy, or the student where there is none."""
        return self._student[0] if self.copy is None else self.copy

    def network_at(self, step: int) -> VideoSegmenter:
        """The network that labels frames ``step`` optimiser steps after the warm-up."""
        return self.network

    @torch.no_grad()
    def reset(self, student: VideoSegmenter) -> None:
        """Become a copy of ``student`` as it is now."""
        self.network.load_state_dict(student.state_dict())

    def train(self, mode: bool = True) -> "TeacherNetwork":
        """Does nothing to the copy: a teacher has no training mode."""
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

    copies = False


class FrozenTeacher(TeacherNetwork):
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
        return self.network


class EmaTeacher(TeacherNetwork):
    """A moving average of the student labels every frame; :meth:`update` moves it after every optimiser step.

    Args:
        student, statistics: see :class:`TeacherNetwork`.
        momentum: share of the teacher that an update keeps.
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
        self.momentum, self.warm_up = momentum, warm_up

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
        (averages, counters), (values, counts) = _state(self.network), _state(student)
        torch._foreach_lerp_(averages, values, 1 - self.momentum_at(step))
        if counters:
            torch._foreach_copy_(counters, counts)


def _state(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and floating-point buffers, and the other buffers, in a fixed order."""
    buffers = list(network.buffers())
    averaged = [*network.parameters(), *filter(torch.is_floating_point, buffers)]
    return averaged, [buffer for buffer in buffers if not buffer.is_floating_point()]
