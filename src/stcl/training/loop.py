"""The training loop; :func:`train_steps` and :func:`take_step` read from top to bottom.

Nothing in a step waits for a GPU. Whether a step counts is decided on the device; what it reports is copied to the host
while the next steps run, and read some steps later, at the same step in every process.
"""

from collections.abc import Iterator

import torch
import torch.distributed
from torch import Tensor

from stcl.errors import TrainingStopped
from stcl.methods import DomainBatch
from stcl.models import save_weights
from stcl.training.checkpoint import write_checkpoint
from stcl.training.logs import step_bar
from stcl.training.run_folder import RunFolder
from stcl.training.signals import StopRequest
from stcl.training.state import Training

LAG_STEPS = 2
"""How many steps later the host reads what a step on a GPU reports."""


def train_steps(
    training: Training, batches: Iterator[DomainBatch], folder: RunFolder, stop: StopRequest, quiet: bool = False
) -> None:
    """Take the steps that are left; the last one is saved, too: what comes after training can be repeated from there.

    Args:
        training: has been started.
        batches: this process's shares of the batches, from the training's step on.
        folder: of the run, for checkpoints, snapshots and the status.
        stop: may get a signal at any time; the step under way is finished and saved.
        quiet: no progress bar.

    Raises:
        TrainingError: too many steps were not finite, or a checkpoint cannot be written.
        TrainingStopped: of a signal.
    """
    method, fabric, reports, options = training.method, training.fabric, training.reports, training.settings.training
    lag, log_every = LAG_STEPS if fabric.device.type == "cuda" else 0, min(options.log_every, options.steps)
    with stop.listening(), step_bar(method.step, method.steps, quiet or not fabric.is_global_zero) as show:
        for step, batch in zip(range(method.step, method.steps), batches, strict=False):
            take_step(training, batch, stop)
            done = step + 1
            if done % log_every == 0:
                fabric.log_dict({"epoch": 0, **method.logged}, step)  # TensorBoard's curves always had an epoch
                for logger in fabric.loggers:
                    logger.save()
            if options.snapshot_every and done % options.snapshot_every == 0:
                save_snapshot(training, folder)
            stopping = reports.read(lag)
            if stopping or done % options.checkpoint_every == 0 or done == method.steps:
                stopping |= reports.read()
                save_checkpoint(training, folder)
            if stopping:
                name = "another process's signal" if stop.received is None else stop.received.name
                raise TrainingStopped(
                    f"stopped by {name} after step {done} of {method.steps}; everything is saved. Go on with: stcl "
                    f"train --resume {folder.path}",
                    stop.status,
                )
            show(reports.loss)


def take_step(training: Training, batch: DomainBatch, stop: StopRequest | None = None) -> None:
    """One optimisation step, which reports to ``training.reports``; one that is not finite changes nothing.

    Args:
        training: has been started.
        batch: of this process, on the host.
        stop: what this process was asked, for all processes to hear of it.
    """
    method, fabric, optimizer = training.method, training.fabric, training.optimizer
    data = {domain: clip.to(fabric.device) for domain, clip in batch.items()}  # type: ignore[attr-defined]
    moving = method.moving_statistics()
    before = [buffer.clone() for buffer in moving]

    with training.autocast():
        loss = training.forward(data)
    optimizer.zero_grad()
    fabric.backward(loss)

    losses = torch.stack([term.float() for term in method.terms.values()])
    norm = clip_gradients(training)
    stopping = stop is not None and stop.received is not None
    flags = torch.stack(((~(losses.sum() + norm).isfinite()).float(), torch.full_like(norm, float(stopping))))
    if fabric.world_size > 1:  # one decision for all processes
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    left_out = flags[0] > 0

    if training.scaler is None:  # else it leaves overflows out by itself
        optimizer.grad_scale, optimizer.found_inf = None, left_out.float()  # type: ignore[attr-defined]
    fabric.strategy.optimizer_step(optimizer)  # a fused one does nothing where found_inf is 1
    for buffer, value in zip(moving, before, strict=True):
        torch.where(left_out, value, buffer, out=buffer)
    training.schedule.step()
    method.average.update(method.network, method.step)

    training.reports.add(method, torch.cat((flags, losses.sum().view(1), losses)))
    method.step += 1


def clip_gradients(training: Training) -> Tensor:
    """The norm of all gradients together, ``()``, before they are clipped where the settings want that."""
    parameters = [parameter for group in training.optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if training.scaler is not None:  # 16-mixed: the gradients are still scaled
        scale = training.scaler.scale(torch.ones_like(norm))
        norm = torch.where(norm.isfinite(), norm / scale, 0.0)
    if training.settings.training.gradient_clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, training.settings.training.gradient_clip, norm)
    return norm


def save_checkpoint(training: Training, folder: RunFolder) -> None:
    """Write a checkpoint of the steps that are done; every process calls it, the first one writes."""
    state, step = training.state(), training.method.step
    if training.fabric.is_global_zero:
        write_checkpoint(state, folder.checkpoint)
        training.write_status(folder, "running")
    training.reports.safe = f"The last good checkpoint is that of step {step}: {folder.checkpoint}"


def save_snapshot(training: Training, folder: RunFolder) -> None:
    """Weights of teacher and student for ``stcl analyse``; a run that goes on writes the same again."""
    method = training.method
    if training.fabric.is_global_zero:
        networks = torch.nn.ModuleDict({"teacher": method.average.network, "student": method.network})
        save_weights(networks, folder.snapshot(method.step), {"step": str(method.step)})
