"""What a training shows while it runs: ``metrics.csv``, and the progress bar."""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import Logger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.progress import ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from stcl.files.writing import write_atomic
from stcl.terminal import progress_bar


class MetricsFile(Logger):
    """A CSV file with a row each ``training.log_every`` steps, which a resumed run goes on with.

    Lightning's own CSV logger starts its file anew.

    Args:
        path: the file.
        start_step: rows of this step and later ones come from steps that will be done again, and are dropped.
    """

    name, version = "metrics", ""

    def __init__(self, path: Path, start_step: int = 0) -> None:
        self.path, self.start_step = path, start_step
        self._columns: list[str] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They lie in ``config.yaml``."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row; where a method starts to log more, the file is written anew with the further columns."""
        if not self._columns:  # the first row: keep those of the steps before
            rows = self._rows() if self.start_step and self.path.is_file() else []
            self._columns = list(rows[0]) if rows else ["step"]
            self._write([row for row in rows if int(row["step"]) < self.start_step])
        row = {"step": str(step), **{key: f"{value:.6g}" for key, value in metrics.items() if key != "epoch"}}
        further = sorted(row.keys() - set(self._columns))
        if further:
            rows = self._rows()
            self._columns += further
            self._write([*rows, row])
        else:
            with self.path.open("a", encoding="utf-8", newline="") as file:  # a reader leaves out half a row
                csv.DictWriter(file, self._columns, restval="", lineterminator="\n").writerow(row)

    def _rows(self) -> list[dict[str, str]]:
        """The whole rows of the file; a kill may have left half of one."""
        with self.path.open(encoding="utf-8", newline="") as file:
            return [row for row in csv.DictReader(file) if None not in row.values() and row["step"].isdecimal()]

    def _write(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue().encode())


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Steps of a second."""
        return Text(f"{task.speed or 0:.2f}/s")


@contextmanager
def step_bar(step: int, steps: int, quiet: bool) -> Iterator[Callable[[float], None]]:
    """A bar that counts steps from ``step`` on; yields what is called after each with the latest loss."""
    with progress_bar(quiet, TimeElapsedColumn(), _Speed(), TextColumn("loss {task.fields[loss]:.3f}")) as bar:
        task = bar.add_task("training", total=steps, completed=step, loss=float("nan"))
        yield lambda loss: bar.update(task, advance=1, loss=loss)
