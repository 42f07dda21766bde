"""The run folder: what lies in it, who may write into it, and what it says about itself."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from stcl.errors import CheckpointError, DataError, SettingError
from stcl.files.folders import hold_lock, refuse_others
from stcl.files.plain import read_json
from stcl.files.writing import write_atomic
from stcl.training.config import load_settings
from stcl.training.settings import Settings

State = Literal["running", "stopped", "failed", "finished"]


class RunFolder:
    """One training run on disk.

    ``config.yaml`` (the resolved settings), ``run.json`` (command, versions, revision, environment, identity of the
    data), ``status.json`` (state, step, seconds), ``metrics.csv``, ``events/`` (TensorBoard), ``checkpoints/`` (the
    last one and the one before), ``snapshots/`` (teacher and student, where wanted) and ``model.safetensors`` (the
    evaluated weights), which is written last: a folder without it is unfinished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.record = path / "run.json"
        self.status = path / "status.json"
        self.metrics = path / "metrics.csv"
        self.events = path / "events"
        self.checkpoint = path / "checkpoints" / "last.ckpt"
        self.previous = path / "checkpoints" / "previous.ckpt"
        self.snapshots = path / "snapshots"
        self.weights = path / "model.safetensors"

    def settings(self) -> Settings:
        """The settings of the run."""
        if not self.config.exists():
            raise SettingError(
                f"{self.path} is no run folder: it holds no {self.config.name}. Name a folder that 'stcl train' wrote."
            )
        self._refuse_empty()
        return load_settings(self.config)

    def snapshot(self, step: int) -> Path:
        """Where the snapshot of a step lies."""
        return self.snapshots / f"step-{step:06d}.safetensors"

    def list_snapshots(self) -> dict[int, Path]:
        """Snapshots by step, the earliest first."""
        names = ((re.fullmatch(r"step-(\d+)\.safetensors", path.name), path) for path in self.snapshots.glob("step-*"))
        return dict(sorted((int(name[1]), path) for name, path in names if name))

    def refuse_taken(self) -> None:
        """Two runs never share a folder, and files of other people stay as they are."""
        if not self.config.exists():
            own = (self.record, self.status, self.metrics, self.events, self.checkpoint.parent, self.snapshots)
            refuse_others(self.path, [path.name for path in (*own, self.weights)], (), "stcl train")
            return
        self._refuse_empty()
        if self.weights.is_file():
            raise SettingError(f"{self.path} holds a finished run. Choose another folder with --out.")
        raise SettingError(
            f"{self.path} holds an unfinished run. Go on with it: stcl train --resume {self.path}; or choose another "
            "folder with --out, or remove that one first."
        )

    def _refuse_empty(self) -> None:
        if self.config.is_file() and not self.config.stat().st_size:
            raise SettingError(
                f"{self.config} is empty, so nobody knows what was trained there (was the disk full?). Remove that "
                "folder, or choose another."
            )

    def claim(self, settings: Settings, record: dict[str, Any]) -> None:
        """Begin a new run in the folder, whose lock is held: afterwards it can go on, or nothing of it is there."""
        self.refuse_taken()
        with self._writable():
            write_atomic(self.config, settings.dump().encode(), durable=True)
            try:
                write_atomic(self.record, json.dumps(record, indent=1).encode(), durable=True)
            except BaseException:
                self.config.unlink()  # written just now
                raise

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while a process trains into the folder, which is made; ends with the process, however that ends."""
        busy = f"Another process is training into {self.path} right now. Wait for it, or stop it first."
        with ExitStack() as stack:
            with self._writable():
                stack.enter_context(hold_lock(self.path / ".lock", busy))
            yield

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = "a file is there" if isinstance(error, FileExistsError) else error.strerror
            raise SettingError(f"Cannot write run folder {self.path} ({why}). Choose another with --out.") from None

    def write_status(self, state: State, step: int, steps: int, seconds: float, **more: Any) -> None:
        """Say how far the run is; ``seconds`` counts all of its parts."""
        status = {
            "state": state,
            "finished": state == "finished",
            "step": step,
            "steps": steps,
            "seconds": round(seconds, 1),
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "process": os.getpid(),
            **more,
        }
        write_atomic(self.status, json.dumps(status, indent=2).encode())

    def read_status(self) -> dict[str, Any]:
        """What the run last said of itself; empty where it has said nothing yet."""
        return self._read_json(self.status)

    def read_record(self) -> dict[str, Any]:
        """``run.json``; empty where there is none."""
        return self._read_json(self.record)

    def compare_data(self, before: dict[str, Any], present: dict[str, Any]) -> None:
        """Refuse to go on with other data than the run began with; both as of ``run.json``."""
        for domain, known in before.items():
            now = present.get(domain, {})
            differences = [
                f"{key} {known[key]}, now {now.get(key)}"
                for key in ("frames", "labelled", "clips")
                if known[key] != now.get(key)
            ]
            other_files = known["digest"] != now.get("digest")
            if other_files or known.get("chosen", now.get("chosen")) != now.get("chosen"):  # older records do not say
                other = "files of other names or sizes" if other_files else "other frames are listed"
                raise DataError(
                    f"The {domain} data in {now.get('root')} are not those that run {self.path} began with "
                    f"({'; '.join(differences) or other}). Put them back, or start a new run."
                )

    def seconds(self) -> float | None:
        """How long the training took so far; None where the folder does not say."""
        status = self.read_status()
        try:
            return float(status["seconds"]) if status else None
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{self.status} is damaged: it does not say how long training took. Delete it."
            ) from None

    def _read_json(self, path: Path) -> dict[str, Any]:
        if not path.exists():
            return {}
        try:
            content = read_json(path)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}. Delete it.") from None
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged ({error}). Delete it.") from None
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} is damaged: it holds no table. Delete it.")
        return content
