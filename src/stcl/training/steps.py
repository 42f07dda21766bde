"""What happens between two steps: was the last one finite, is a checkpoint due, has anybody asked to stop?

Nothing here waits for a GPU within a step: what a step says about itself is copied to the host while the next ones run,
and read some steps later, at the same step on every process.
"""

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from stcl.errors import TrainingError, TrainingStopped
from stcl.methods import AdaptationMethod
from stcl.models import save_weights
from stcl.terminal import plain_console
from stcl.training.run_folder import RunFolder
from stcl.training.settings import TrainingSettings
from stcl.training.signals import StopRequest

LAG_STEPS = 2
"""How many steps later the host reads what a GPU step said of itself."""


@dataclass
class Report:
    """What a step says of itself, on its way to the host: ``values`` are bad, stop, total loss, then the loss terms."""

    step: int
    clips: list[str]
    terms: list[str]
    values: Tensor
    copied: Any

    @classmethod
    def send(cls, step: int, clips: list[str], terms: list[str], values: Tensor) -> "Report":
        """Start the copy to the host; on a CPU there is nothing to copy."""
        if values.device.type != "cuda":
            return cls(step, clips, terms, values, None)
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return cls(step, clips, terms, host, copied)

    def read(self) -> list[float]:
        """The values; waits for the copy alone."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.values.tolist()


class StepBoundary(Callback):
    """Leaves steps out whose loss or gradients are not finite, saves checkpoints, stops when asked to.

    A step that is left out leaves the student as it was: the optimiser skips it and the batch statistics go back,
    both decided on the device. The checkpoint of step k is saved when batch k + 1 is about to begin, where everything
    that belongs to step k has happened.
    """

    def __init__(
        self, folder: RunFolder, settings: TrainingSettings, stop: StopRequest, step: int = 0, seconds: float = 0.0
    ) -> None:
        self.folder, self.settings, self.stop = folder, settings, stop
        self.skipped: list[int] = []
        self.loss = float("nan")
        self._before = seconds
        self._started = time.monotonic()
        self._reports: deque[Report] = deque()
        self._kept: list[tuple[list[Tensor], Tensor]] = []
        self._last_saved = step

    @property
    def seconds(self) -> float:
        """Training time of the run so far, all of its parts together."""
        return self._before + time.monotonic() - self._started

    # ---- Lightning's hooks ----

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {"skipped": list(self.skipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self.skipped = list(state_dict["skipped"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on signals wait for the end of a step."""
        self.stop.install()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two steps."""
        self._between(trainer)
        self._keep_snapshot(trainer, pl_module)
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step  # a resumed run would log one more
        assert isinstance(pl_module, AdaptationMethod)
        groups: dict[torch.dtype, list[Tensor]] = {}
        for buffer in pl_module.moving_statistics():
            groups.setdefault(buffer.dtype, []).append(buffer)
        self._kept = [(group, torch.cat([buffer.flatten() for buffer in group])) for group in groups.values()]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure the gradient, clip it, and decide whether the step counts."""
        assert isinstance(pl_module, AdaptationMethod)
        losses = torch.stack([term.detach().float() for term in pl_module.terms.values()])
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:  # 16-mixed: gradients are still scaled here, and the scaler leaves overflows out itself
            norm = torch.where(norm.isfinite(), norm / scaler._get_scale_async(), 0.0)
        if self.settings.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.settings.gradient_clip, norm)
        bad = ~(losses.sum() + norm).isfinite()
        flags = torch.stack((bad.float(), torch.full_like(norm, float(self.stop.received is not None))))
        if trainer.world_size > 1:  # one decision for all processes
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        self._leave_out(optimizer, flags[0] > 0, scaled=scaler is not None)
        values = torch.cat((flags, losses.sum().view(1), losses))
        self._reports.append(Report.send(trainer.global_step, pl_module.clips, [*pl_module.terms], values))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last step has its checkpoint, too: what comes after training can be repeated from there."""
        self.settle(trainer, lag=0)
        self._keep_snapshot(trainer, pl_module)
        self.save(trainer)

    # ---- what they do ----

    def _between(self, trainer: Trainer) -> None:
        self.settle(trainer, LAG_STEPS if trainer.strategy.root_device.type == "cuda" else 0)
        step = trainer.global_step
        if step != self._last_saved and step % self.settings.checkpoint_every == 0:
            self.settle(trainer, lag=0)
            self.save(trainer)

    def settle(self, trainer: Trainer, lag: int) -> None:
        """Read the reports of all but the last ``lag`` steps and act on them."""
        stopping = False
        while len(self._reports) > (0 if stopping else lag):
            report = self._reports.popleft()
            bad, stop, self.loss, *terms = report.read()
            stopping = stopping or bool(stop)
            if bad:
                self._count(trainer, report, terms)
        if stopping:
            self.save(trainer)
            raise self._stopped(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of the steps that are done, if they have none yet."""
        if trainer.global_step != self._last_saved or not self.folder.checkpoint.exists():
            trainer.save_checkpoint(self.folder.checkpoint)
            self._last_saved = trainer.global_step
        self.write_status(trainer, "running")

    def _keep_snapshot(self, trainer: Trainer, method: LightningModule) -> None:
        """Weights of teacher and student for ``stcl analyse``; a run that goes on writes the same again."""
        assert isinstance(method, AdaptationMethod)
        step, every = trainer.global_step, self.settings.snapshot_every
        if every and step and step % every == 0 and trainer.is_global_zero:
            networks = torch.nn.ModuleDict({"teacher": method.average.network, "student": method.network})
            save_weights(networks, self.folder.snapshot(step), {"step": str(step)})

    def write_status(self, trainer: Trainer, state: Any, **more: Any) -> None:
        """The first process says how far the run is."""
        if trainer.is_global_zero:
            skipped = {"skipped_steps": self.skipped} if self.skipped else {}
            step = max(trainer.global_step, self._last_saved)  # before training has begun Lightning knows of none
            self.folder.write_status(state, step, self.settings.steps, self.seconds, **skipped, **more)

    def _leave_out(self, optimizer: torch.optim.Optimizer, bad: Tensor, scaled: bool) -> None:
        """A fused optimiser does nothing where ``found_inf`` is 1; batch statistics go back to what they were."""
        if not scaled:
            optimizer.grad_scale, optimizer.found_inf = None, bad.float()  # type: ignore[attr-defined]
        for buffers, before in self._kept:
            now = torch.cat([buffer.flatten() for buffer in buffers])
            parts = torch.where(bad, before, now).split([buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view_as(own) for part, own in zip(parts, buffers, strict=True)])

    def _count(self, trainer: Trainer, report: Report, terms: list[float]) -> None:
        self.skipped.append(report.step)
        parts = ", ".join(f"{name} = {value:.4g}" for name, value in zip(report.terms, terms, strict=True))
        what = (
            f"loss or gradients of step {report.step} are not finite numbers ({parts}; clips {', '.join(report.clips)})"
        )
        if len(self.skipped) > self.settings.skipped_steps:
            good = (
                f"The last good checkpoint is that of step {self._last_saved}: {self.folder.checkpoint}"
                if self.folder.checkpoint.exists()
                else "No checkpoint was saved before"
            )
            raise TrainingError(
                f"Training stopped: {what}, and {len(self.skipped) - 1} steps were left out before (training."
                f"skipped_steps allows {self.settings.skipped_steps}). {good}. In a new run, lower method.optimization."
                "learning_rate, set training.gradient_clip, or take bf16-mixed or 32-true for training.precision."
            )
        if trainer.is_global_zero:
            plain_console(stderr=True).print(f"stcl: left out: {what}.")

    def _stopped(self, trainer: Trainer) -> TrainingStopped:
        name = "another process's signal" if self.stop.received is None else self.stop.received.name
        return TrainingStopped(
            f"stopped by {name} after step {trainer.global_step} of {self.settings.steps}; everything is saved. Go on "
            f"with: stcl train --resume {self.folder.path}",
            self.stop.status,
        )
