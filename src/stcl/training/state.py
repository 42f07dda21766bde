"""What training steps need and change, as one object; and what a step reports of itself."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from stcl.errors import TrainingError
from stcl.methods import AdaptationMethod
from stcl.methods.patches import ResizableBuffers
from stcl.ops.processes import gather
from stcl.terminal import plain_console
from stcl.training.checkpoint import ABOUT
from stcl.training.run_folder import RunFolder, State
from stcl.training.settings import Settings


class _Report(NamedTuple):
    step: int
    clips: list[str]
    terms: list[str]
    values: Tensor
    copied: torch.cuda.Event | None


class Reports:
    """What steps report of themselves: copied to the host while the next steps run, read later.

    Args:
        allowed: how many steps may be left out before training stops.
        quiet: do not name them on stderr.

    Attributes:
        skipped: numbers of the steps that were left out.
        loss: of the step that was read last.
        safe: what is kept if training stops now, in words.
    """

    def __init__(self, allowed: int, quiet: bool) -> None:
        self.allowed, self.quiet = allowed, quiet
        self.skipped: list[int] = []
        self.loss = float("nan")
        self.safe = "No checkpoint was saved before"
        self._waiting: deque[_Report] = deque()

    def add(self, method: AdaptationMethod, values: Tensor) -> None:
        """Start the copy of a step's report to the host; on a CPU there is nothing to copy.

        Args:
            method: after the step's losses, before it counts the step.
            values: ``(3 + terms,)``: 1 if the step is left out, 1 if a process was asked to stop, the loss, its terms.
        """
        copied = None
        if values.device.type == "cuda":
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            values = host.copy_(values, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
        self._waiting.append(_Report(method.step, method.clips, [*method.terms], values, copied))

    def read(self, lag: int = 0) -> bool:
        """Read all reports but the last ``lag``; whether a process was asked to stop.

        Raises:
            TrainingError: more steps were left out than are allowed.
        """
        stopping = False
        while len(self._waiting) > lag:
            report = self._waiting.popleft()
            if report.copied is not None:
                report.copied.synchronize()
            left_out, stop, self.loss, *terms = report.values.tolist()
            stopping = stopping or bool(stop)
            if left_out:
                self._count(report, terms)
        return stopping

    def _count(self, report: _Report, terms: list[float]) -> None:
        self.skipped.append(report.step)
        parts = ", ".join(f"{name} = {value:.4g}" for name, value in zip(report.terms, terms, strict=True))
        what = (
            f"loss or gradients of step {report.step} are not finite numbers ({parts}; clips {', '.join(report.clips)})"
        )
        if len(self.skipped) > self.allowed:
            raise TrainingError(
                f"Training stopped: {what}, and {len(self.skipped) - 1} steps were left out before (training."
                f"skipped_steps allows {self.allowed}). {self.safe}. In a new run, lower method.optimization."
                "learning_rate, set training.gradient_clip, or take bf16-mixed or 32-true for training.precision."
            )
        if not self.quiet:
            plain_console(stderr=True).print(f"stcl: left out: {what}.")


class Training:
    """A method with its devices, optimiser and schedule.

    Args:
        fabric: devices and precision; it launches the other processes in :meth:`start`.
        method: what is trained; counts the steps. Its networks are prepared.
        settings: of the run.
        step: where this part of the run begins.
        seconds: how long the earlier parts took.

    Attributes:
        forward: the method, as the processes call it together.
        optimizer, schedule: of the student.
        scaler: of the loss, with 16-mixed.
        reports: of the steps.
    """

    forward: Callable[..., Tensor]
    optimizer: Optimizer
    schedule: LambdaLR

    def __init__(
        self, fabric: Fabric, method: AdaptationMethod, settings: Settings, step: int = 0, seconds: float = 0.0
    ) -> None:
        self.fabric, self.method, self.settings = fabric, method, settings
        self.scaler: torch.amp.GradScaler | None = getattr(fabric.strategy.precision, "scaler", None)
        self.reports = Reports(settings.training.skipped_steps, quiet=not fabric.is_global_zero)
        self._began = time.monotonic() - seconds
        method.step, method.steps, method.rank = step, settings.training.steps, fabric.global_rank

    def start(self, state: dict[str, Any] | None = None) -> None:
        """Launch the other processes and begin, or go on with the :meth:`state` of a checkpoint."""
        self.fabric.launch()
        method = self.method
        if state is not None:
            method.load_state_dict(state["state_dict"])
            memories = state[ABOUT].get("memories")
            if memories:  # this process's own; of another number of processes, one of theirs
                method.load_state_dict(memories[method.rank % len(memories)], strict=False)
        method.to(self.fabric.device)
        self.forward = self.fabric.strategy.setup_module(method)
        self.optimizer, self.schedule = method.make_optimizer()
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer_states"][0])
            self.schedule.load_state_dict(state["lr_schedulers"][0])
            older = state.get("callbacks", {}).get("StepBoundary", {})  # of a checkpoint by Lightning's Trainer
            self.reports.skipped = [*(state["skipped"] if "skipped" in state else older["skipped"])]
            if self.scaler is not None:
                self.scaler.load_state_dict(state["scaler"] if "scaler" in state else state["MixedPrecision"])

    def autocast(self) -> torch.autocast:
        """The precision of a forward pass. Weights are cast anew in each, so that their gradients add up in 32 bits."""
        dtypes = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        dtype = dtypes.get(self.settings.training.precision)
        return torch.autocast(self.fabric.device.type, dtype, enabled=dtype is not None, cache_enabled=False)

    def state(self) -> dict[str, Any]:
        """All that a resumed run has to know; every process calls it, since each has patches of its own."""
        method, state = self.method, self.method.state_dict()
        about: dict[str, Any] = {"config": self.settings.dump(), "processes": self.fabric.world_size}
        if self.fabric.world_size > 1:
            names = [
                f"{prefix}.{name}"
                for prefix, part in method.named_modules()
                if isinstance(part, ResizableBuffers)
                for name, _ in part.named_buffers()
            ]
            about["memories"] = gather({name: state[name].cpu() for name in names})
        return {
            ABOUT: about,
            "global_step": method.step,
            "state_dict": state,
            "optimizer_states": [self.optimizer.state_dict()],
            "lr_schedulers": [self.schedule.state_dict()],
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "skipped": [*self.reports.skipped],
        }

    def write_status(self, folder: RunFolder, state: State, **more: Any) -> None:
        """The first process says how far the run is."""
        if self.fabric.is_global_zero:
            seconds, skipped = time.monotonic() - self._began, self.reports.skipped
            more |= {"skipped_steps": skipped} if skipped else {}
            folder.write_status(state, self.method.step, self.method.steps, seconds, **more)
