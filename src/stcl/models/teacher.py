"""The network that gives pseudo labels: an average of the student, a frozen copy of it, or the student itself.

Sources: mean teacher (Tarvainen and Valpola 2017, arXiv 1703.01780); the published STCL recipe labels with a frozen
warm-start network first and with the student itself later (method section 4).
"""

from copy import deepcopy
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from stcl.errors import SettingError, unknown_name
from stcl.models.norms import PassStatistics, check_statistics, inference_statistics
from stcl.models.segmenter import VideoSegmenter
from stcl.types import FramePair, SegOutput

TeacherKind = Literal["ema", "frozen", "self"]


class EmaTeacher(nn.Module):
    """Segments without gradient, without dropout and without moving any running statistics.

    Args:
        student: the network that is trained.
        momentum: share of the teacher that an update keeps.
        kind: ``ema`` follows the student by :meth:`update`; ``frozen`` stays what the student was when :meth:`reset`
            was last called; ``self`` is the student (no copy, and nothing in the state).
        statistics: ``batch`` normalises with the frames that it segments, both of each pair and all pairs together;
            ``running`` with stored statistics.
        warm_up: let early updates follow faster: the momentum of update ``step`` is at most ``1 - 1 / (step + 1)``.
    """

    def __init__(
        self,
        student: VideoSegmenter,
        momentum: float = 0.999,
        kind: TeacherKind = "ema",
        statistics: PassStatistics = "batch",
        warm_up: bool = True,
    ) -> None:
        super().__init__()
        if kind not in get_args(TeacherKind):
            raise SettingError(unknown_name("teacher", kind, get_args(TeacherKind)))
        if not 0 <= momentum <= 1:
            raise SettingError(f"The teacher's momentum is a share between 0 and 1, not {momentum}.")
        check_statistics(statistics)
        self.momentum = momentum
        self.kind = kind
        self.statistics: PassStatistics = statistics
        self.warm_up = warm_up
        self._student = (student,)  # in a tuple: the student is no sub-module, its weights are not saved twice
        self.copy: VideoSegmenter | None = None
        if kind != "self":
            self.copy = deepcopy(student).requires_grad_(False).eval()
            self.copy.zero_grad(set_to_none=True)

    @property
    def network(self) -> VideoSegmenter:
        """The network that answers."""
        return self._student[0] if self.copy is None else self.copy

    def train(self, mode: bool = True) -> "EmaTeacher":
        """Does nothing to the copy: a teacher has no training mode."""
        self.training = mode
        return self

    @torch.no_grad()
    def forward(self, pair: FramePair) -> SegOutput:
        """Segment ``pair`` with the chosen statistics; scores without gradient."""
        with inference_statistics(self.network, self.statistics):
            output: SegOutput = self.network(pair)
        if self.copy is None:  # weights cast here have no gradient, and older versions of torch would reuse them
            torch.clear_autocast_cache()
        return output

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
        if self.kind != "ema" or self.copy is None:
            return
        averages, counters = _state(self.copy)
        values, counts = _state(student)
        torch._foreach_lerp_(averages, values, 1 - self.momentum_at(step))
        if counters:
            torch._foreach_copy_(counters, counts)

    @torch.no_grad()
    def reset(self, student: VideoSegmenter) -> None:
        """Become a copy of ``student`` as it is now (a ``self`` teacher is it anyway)."""
        if self.copy is not None:
            self.copy.load_state_dict(student.state_dict())


def _state(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and floating-point buffers, and the other buffers, in a fixed order."""
    buffers = list(network.buffers())
    averaged = [*network.parameters(), *filter(torch.is_floating_point, buffers)]
    return averaged, [buffer for buffer in buffers if not buffer.is_floating_point()]
