"""Checkpoints of a run: whole or not there, checked when they are read, and with the one before as a reserve."""

import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stcl.errors import CheckpointError, TrainingError
from stcl.files.plain import load_yaml
from stcl.files.writing import write_atomic
from stcl.models.weights.files import UNREADABLE, load_saved
from stcl.training.run_folder import RunFolder
from stcl.training.settings import Settings

_FREE = "workers accelerator devices nodes log_every checkpoint_every snapshot_every skipped_steps"
FREE_KEYS = frozenset({"prepared", *(f"training.{key}" for key in _FREE.split())})
"""Keys that may change when a run goes on: they decide how it runs, not what it computes."""

ABOUT = "stcl"
"""Where a checkpoint keeps what it says about itself."""


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write, wait for the disk, rename; what was there stays until the new file is whole, then as the reserve.

    Args:
        state: see :meth:`stcl.training.state.Training.state`.
        path: in the folder ``checkpoints`` of a run.

    Raises:
        TrainingError: it cannot be written.
    """
    content = io.BytesIO()
    torch.save(state, content)
    try:
        write_atomic(path, content.getbuffer(), durable=True, keep_as=path.with_name("previous.ckpt"))
    except OSError as error:
        kept = f"The last good checkpoint stays: {path}." if path.exists() else "There is no earlier one."
        raise TrainingError(
            f"The checkpoint of step {state['global_step']} could not be written to {path} ({error.strerror}). {kept} "
            f"Mend that (is the disk full?) and go on with: stcl train --resume {path.parent.parent}."
        ) from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, as data and never as code; a damaged file is refused, not read in part."""
    try:
        checkpoint = load_saved(path, checksums=True)
    except (zipfile.BadZipFile, EOFError) as error:
        raise CheckpointError(f"{path} is no whole checkpoint ({error}).") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}).") from None
    except UNREADABLE as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path} is no checkpoint of a run ({reason}).") from None
    about = checkpoint.get(ABOUT) if isinstance(checkpoint, dict) else None
    known = isinstance(about, dict) and [type(about.get(key)) for key in ("config", "processes")] == [str, int]
    if not known or not isinstance(checkpoint.get("global_step"), int):
        raise CheckpointError(f"{path} is no checkpoint of a run: it does not say of which.")
    return checkpoint


class Resume(NamedTuple):
    """Where a run goes on.

    Attributes:
        path: of the checkpoint; None: from the start.
        step: of the checkpoint.
        processes: that wrote it.
        notes: for the user.
    """

    path: Path | None = None
    step: int = 0
    processes: int = 0
    notes: tuple[str, ...] = ()


def find_checkpoint(folder: RunFolder, settings: Settings) -> Resume:
    """The newest whole checkpoint of a run, checked against its settings."""
    notes: list[str] = []
    found = [path for path in (folder.checkpoint, folder.previous) if path.is_file()]
    for path in found:
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            notes.append(f"{error} Trying the one before.")
            continue
        about, step = checkpoint[ABOUT], int(checkpoint["global_step"])
        changed = changed_keys(load_yaml(about["config"]), settings.as_dict()) - FREE_KEYS
        if changed:
            raise CheckpointError(
                f"{folder.config} was changed since {path} was written: {', '.join(sorted(changed))}. A run goes on "
                "with its settings; put them back, or start a new run."
            )
        return Resume(path, step, int(about["processes"]), tuple(notes))
    if found:
        raise CheckpointError(
            f"No checkpoint of {folder.path} can be read. {' '.join(notes)} Remove {folder.checkpoint.parent} to start "
            "this run over from its first step."
        )
    return Resume(notes=(f"{folder.path} holds no checkpoint yet: it starts over from its first step.",))


def changed_keys(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> set[str]:
    """``group.key`` of everything that differs."""
    keys: set[str] = set()
    for key in before.keys() | after.keys():
        one, two = before.get(key), after.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            keys |= changed_keys(one, two, f"{prefix}{key}.")
        elif one != two:
            keys.add(f"{prefix}{key}")
    return keys
