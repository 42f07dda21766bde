"""A section of gpu_report.py in a process of its own: how it is started, and where it hands its figures on.

Nothing heavy is imported here, since the parent, which must outlive everything, imports it too.
"""

import gc
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from packages import unfit


class NotHereError(Exception):
    """A part cannot be measured here, for a reason that is no mistake."""


class Report:
    """What a section is called with.

    Args:
        pipe: to the parent.
        seconds: until the section is cut.
        tiny: whether nothing is to be measured really.
        folder: for files; it is removed at the end.
    """

    def __init__(self, pipe: Connection, seconds: float, tiny: bool, folder: Path) -> None:
        self._pipe, self._end = pipe, time.monotonic() + seconds
        self.tiny, self.folder = tiny, folder

    @property
    def left(self) -> float:
        """Seconds until the section is cut."""
        return self._end - time.monotonic()

    def doing(self, what: str, **figures: Any) -> None:
        """What comes next in this part, and what is known of it so far."""
        self._pipe.send({"doing": what})
        self.so_far(**figures)
        print(f"{time.strftime('%H:%M:%S')}   {what}", file=sys.stderr, flush=True)

    def so_far(self, **figures: Any) -> None:
        """What is known of this part; all that is left of it if it is cut."""
        self._pipe.send({"figures": figures})

    def part(self, name: str, measure: Callable[[], Mapping[str, Any]]) -> None:
        """Measure one part; what it raises is its own loss."""
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)
        self._pipe.send({"part": name})
        started, figures = time.monotonic(), {}
        try:
            free_memory()
            figures, outcome = dict(measure()), {"state": "done"}
        except Exception as error:  # noqa: BLE001  whatever may go wrong on a card that nobody has seen
            outcome = blame(error)
        reason = {key: outcome[key] for key in ("reason",) if key in outcome}
        seconds = time.monotonic() - started
        self._pipe.send({"end": name, "state": outcome["state"], "seconds": seconds, **figures, **reason})


def blame(error: BaseException) -> dict[str, str]:
    """State and reason: a part that lacks a package is skipped, all else has failed."""
    words = " ".join(str(error).split())[:500]
    if isinstance(error, NotHereError):
        return {"state": "skipped", "reason": words}
    for cause in (error, error.__cause__):  # the package's own errors have the import's as their cause
        if isinstance(cause, ModuleNotFoundError) and cause.name is not None:
            return {"state": "skipped", "reason": f"needs the package '{cause.name}', which is not here"}
    traceback.print_exception(error)
    others = [f"{package} {found}" for package, found in unfit().items() if found is not None]
    note = f"; here is {', '.join(others)}" if others else ""
    return {"state": "failed", "reason": f"{type(error).__name__}: {words}{note}"}


def check_card() -> None:
    """Nothing is measured on a CPU as if it were a card."""
    torch: Any = sys.modules.get("torch")
    try:
        if torch is not None:
            torch.cuda.init()
    except (AssertionError, RuntimeError) as error:  # a build for CPUs, or no card
        raise NotHereError(f"torch {torch.__version__} finds no GPU ({error}); --tiny runs on a CPU") from None


def free_memory() -> None:
    """Give a card back what earlier parts held, and let its peak begin anew."""
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def work(measure: str, tiny: bool, folder: Path, pipe: Connection) -> None:
    """A section's process: import what it needs, say so, wait for its turn, measure.

    Args:
        measure: ``module:function``, called with a :class:`Report`.
        tiny, folder, pipe: see there.
    """
    os.setpgid(0, 0)  # what it starts is killed with it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(2, 1)  # whatever a library prints is no line of the report
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    try:
        function = find(measure)
        pipe.send({"ready": True})
        seconds = pipe.recv()
        if not tiny:
            check_card()
        function(Report(pipe, seconds, tiny, folder))
        pipe.send({"over": "", "state": "done"})
    except EOFError:  # its turn never came
        return
    except Exception as error:  # noqa: BLE001  said in the section's line
        pipe.send({"over": "", **blame(error)})


def find(measure: str) -> Callable[[Report], None]:
    """The function ``module:function``, its module imported."""
    module, _, function = measure.partition(":")
    found: Callable[[Report], None] = getattr(importlib.import_module(module), function)
    return found


def end_with_parent(parent: int) -> None:
    """A report that is killed leaves no process behind."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)
