"""What a training shows while it runs: ``metrics.csv``, and the progress bar."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from stcl.files.writing import write_atomic
from stcl.training.steps import StepBoundary


class MetricsFile(Logger):
    """A CSV file with a row each ``training.log_every`` steps, which a resumed run goes on with.

    Lightning's own CSV logger starts its file anew.

    Args:
        path: the file.
        start_step: rows of this step and later ones come from steps that will be done again, and are dropped.
    """

    def __init__(self, path: Path, start_step: int = 0) -> None:
        super().__init__()
        self.path, self.start_step = path, start_step
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """There is one version."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They lie in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row; where a method starts to log more, the file is written anew with the further columns."""
        if not self._columns:
            self._begin()
        row = {"step": str(step), **{key: f"{value:.6g}" for key, value in metrics.items() if key != "epoch"}}
        further = sorted(row.keys() - set(self._columns))
        if further:
            rows = self._rows()
            self._columns += further
            self._write([*rows, row])
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:  # a reader leaves out half a row
                file.write(self._text([row], header=False))

    def _begin(self) -> None:
        """Keep the rows of the steps before ``start_step``."""
        self._columns = ["step"]
        if self.start_step and self.path.is_file():
            rows = self._rows()
            self._columns = list(rows[0]) if rows else self._columns
            self._write([row for row in rows if int(row["step"]) < self.start_step])
        else:
            self._write([])

    def _rows(self) -> list[dict[str, str]]:
        """The whole rows of the file; a kill may have left half of one."""
        with self.path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if None not in row.values() and row["step"].isdecimal()]

    def _write(self, rows: list[dict[str, str]]) -> None:
        write_atomic(self.path, self._text(rows, header=True).encode())

    def _text(self, rows: list[dict[str, str]], header: bool) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


class StepProgress(RichProgressBar):
    """Lightning's bar with the loss as the host has it: reading it from the device would stop that at every step."""

    def __init__(self, boundary: StepBoundary) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_format=".3f"), console_kwargs={"stderr": True})
        self.boundary = boundary

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands at the end of the bar."""
        return {"loss": self.boundary.loss}

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"  # there are no epochs
