"""``stcl arena``: methods x seeds x pairs as a sequence of verbs, resumable at any point, ending in one table.

Each run is two commands of this program, ``stcl train`` and ``stcl evaluate``, as sub-processes: what one run does to
its process no other run sees, and several can run at once.
"""

import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from stcl.commands.arena.page import check_place, write_table
from stcl.commands.arena.plan import Arena, Job, Streets
from stcl.commands.arena.table import ArenaTable, RowPlan, read_table
from stcl.commands.demo.run import compute_flow
from stcl.errors import BusyError, SettingError, StclError, TrainingStopped, lookup
from stcl.files.folders import hold_lock
from stcl.files.writing import write_atomic
from stcl.pages.results import read_result
from stcl.resources import arena_path
from stcl.terminal import plain_console
from stcl.training.run_folder import RunFolder
from stcl.training.signals import StopRequest
from stcl.twinstreets.export import ExportRequest, export

POLL_SECONDS = 0.1

MARK = b"# written by stcl arena\n"
"""First line of a run's configuration beside its folder."""


def run_arena(
    config: str | Path, out: Path, jobs: int = 1, quiet: bool = False, only: Sequence[str] = (), table: bool = False
) -> ArenaTable:
    """Do all runs of an arena that are not done yet, and write its table.

    Args:
        config: YAML file, or the name of a shipped arena.
        out: folder of data, runs and table; several arenas, also on several machines, may work in it at once.
        jobs: runs at a time; they share the processor's cores and the devices.
        quiet: no progress bar.
        only: names of the pairs to run; empty: all.
        table: only write the table of what is there.

    Returns:
        The table; ``failed`` in it names the runs that went wrong, not those that another process works on.

    Raises:
        SettingError: a mistake in the file, or a run folder of other settings.
        TrainingStopped: a signal stopped it; what ran has been saved, and the same call goes on.
    """
    if jobs < 1:
        raise SettingError("--jobs counts the runs at a time: at least 1.")
    arena = Arena(arena_path(config), out)
    for pair in only:
        lookup(arena.pairs, pair, "pair")
    check_place(arena.out)
    todo, failed, console = arena.jobs(), dict[str, str](), plain_console(stderr=True)
    for job in todo:
        job.refuse_other()
    missing = [] if table else [job for job in todo if job.missing() and (not only or job.pair in only)]
    if missing:
        requests = {name: exports(streets) for name, streets in arena.streets.items()}
        for pair in dict.fromkeys(job.pair for job in missing):
            prepare(arena.data(pair), requests.get(pair, {}), [job for job in todo if job.pair == pair], quiet, console)
        runner = Runner(missing, jobs, console, lambda: _write(arena, todo, failed))
        failed = runner.failed
        runner.run(quiet)
    return _write(arena, todo, failed)


def exports(streets: Streets) -> dict[str, list[ExportRequest]]:
    """What is rendered for a pair, by the folder that it goes to; see docs/data.md."""
    common: dict[str, Any] = {"style_seed": streets.style_seed, "clips": streets.clips, "size": streets.size}
    source = ExportRequest("synthia-seq", "clean", frames=3, **common)
    camera = ExportRequest("cityscapes-seq", "camera", seed=1, frames=5, **common)
    unseen = replace(camera, split="val", clips=streets.unseen, frames=2)
    return {"source": [source]} if streets.source_only else {"source": [source], "target": [camera, unseen]}


def prepare(
    data: Path, requests: dict[str, list[ExportRequest]], jobs: list[Job], quiet: bool, console: Console
) -> None:
    """Render a pair's streets into ``data`` and compute its flow, once for its ``jobs``; other arenas wait for that."""

    def wait() -> None:
        told = f"another process makes the data in {data}, waiting for it"
        console.print(told, highlight=False, markup=False, soft_wrap=True)

    with hold_lock(data / ".lock", f"This process makes the data in {data} already.", wait):
        for folder, several in requests.items():
            for request in several:
                there = (data / folder / f"twinstreets_{request.split}.json").is_file()
                export(data / folder, request, workers=os.cpu_count() or 1, progress=not quiet and not there)
        if any(job.folder.is_dir() for job in jobs):  # the flow was there before the first run began
            return
        adapting = [job.settings for job in jobs if not job.settings.oracle]
        distinct = {str((s.source, s.target, s.evaluation, s.flow)): s for s in adapting}
        for settings in distinct.values():
            if settings.flow.cache is not None and settings.flow.name != "exact":
                compute_flow(settings, quiet)


class Child:
    """A sub-process that does a run's next command; what it says goes into a log beside the run folder.

    Args:
        job: the run.
        step: what it lacks, see :meth:`~stcl.commands.arena.plan.Job.missing`.
        slot: which of the runs at a time it is.
        jobs: runs at a time.
        lock: is given up when the sub-process has ended.
    """

    def __init__(self, job: Job, step: str, slot: int, jobs: int, lock: ExitStack) -> None:
        self.job, self.slot, self.lock = job, slot, lock
        self.log = job.folder.with_name(f"{job.folder.name}.log")
        command = self._command(step)
        with self.log.open("ab") as log:
            self.said = log.tell()
            # a session of its own: Ctrl+C reaches this process alone, which passes it on
            self.process = Popen(
                command, stdout=log, stderr=log, env=environment(job, slot, jobs), start_new_session=True
            )

    def _command(self, step: str) -> list[str]:
        run = self.job.folder
        words = [str(run), "--quiet"]
        if step == "train":
            words = ["train", str(self._write_config()), "--out", *words]
        elif step == "resume":
            words = ["train", "--resume", *words]
        else:
            words = ["evaluate", *words]
        return [sys.executable, "-m", "stcl.cli", *words]

    def _write_config(self) -> Path:
        """The settings as a file beside the run folder, where nobody else's lies."""
        config = self.job.folder.with_name(f"{self.job.folder.name}.yaml")
        content = self.job.settings.dump().encode()
        if config.exists() and not config.read_bytes().startswith((MARK, content)):
            raise SettingError(f"{config} was not written by 'stcl arena': it stays as it is. Move it away.")
        write_atomic(config, MARK + content)
        return config

    def complaint(self) -> str:
        """The last line that the sub-process said."""
        words = self.log.read_bytes()[self.said :].decode(errors="replace")
        last = re.sub("^stcl: (error: )?", "", words.strip().rpartition("\n")[2]) or "No message."
        return f"{last} (exit status {self.process.returncode}; {self.log})"


class Runner:
    """Keeps several runs going until all are done; a signal ends them after the step under way.

    Args:
        todo: the runs.
        jobs: at a time.
        console: where a line a run goes.
        write: writes the table of what is done.
    """

    def __init__(self, todo: list[Job], jobs: int, console: Console, write: Callable[[], object]) -> None:
        self.todo, self.jobs, self.console, self.write = todo, jobs, console, write
        self.running: list[Child] = []
        self.failed: dict[str, str] = {}

    def run(self, quiet: bool = False) -> None:
        """Until the last run has ended; ``failed`` then says why by the run's name. A bar counts unless ``quiet``."""
        waiting, stop, told = deque(self.todo), StopRequest(), False
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with stop.listening(), Progress("runs", *columns, console=self.console, disable=quiet) as bar:
            task = bar.add_task("", total=len(waiting))
            try:
                while self.running or (waiting and not stop.received):
                    while waiting and len(self.running) < self.jobs and not stop.received:
                        self._start(waiting.popleft())
                    time.sleep(POLL_SECONDS)
                    if stop.received and not told:
                        told = True
                        for child in self.running:
                            child.process.send_signal(stop.received)
                    for child in [child for child in self.running if child.process.poll() is not None]:
                        self._ended(child, bool(stop.received))
                    bar.update(task, completed=len(self.todo) - len(waiting) - len(self.running))
            finally:
                for child in self.running:
                    child.process.kill()
        left = sum(job.missing() is not None for job in self.todo)
        if stop.received and left:
            raise TrainingStopped(f"Stopped by {stop.received.name}: {left} runs are left. Call it again.", stop.status)

    def _start(self, job: Job) -> None:
        """Take a run's next command in hand, unless another process has."""
        slot = min(set(range(self.jobs)) - {child.slot for child in self.running})
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as lock:
            try:
                if job.missing() == "evaluate":  # a command that trains holds the run's lock itself
                    lock.enter_context(RunFolder(job.folder).lock())
                elif job.is_busy():
                    raise BusyError
            except BusyError:
                self._say(job, "another process is at it, left to that one")
                return
            step = job.missing()  # another process may have measured it since
            if step is not None:
                self.running.append(Child(job, step, slot, self.jobs, lock.pop_all()))

    def _ended(self, child: Child, stopped: bool) -> None:
        """Go on with the run's next command, or say how the run ended."""
        child.lock.close()
        self.running.remove(child)
        job = child.job
        if child.process.returncode == 0 and job.missing() is not None and not stopped:
            self._start(job)
        elif job.missing() is None:
            left = sum(other.missing() is not None for other in self.todo)
            self._say(job, f"mIoU {read_result(job.folder).miou:.1f}, {left} of {len(self.todo)} left")
            with suppress(StclError):  # of a result that does not fit to the others; said at the end
                self.write()
        elif job.is_busy():
            self._say(job, "another process is at it, left to that one")
        elif not stopped:
            self.failed[job.name] = child.complaint()
            self._say(job, f"failed: {self.failed[job.name]}")

    def _say(self, job: Job, words: str) -> None:
        self.console.print(f"{job.name}: {words}")


def environment(job: Job, slot: int, jobs: int) -> dict[str, str]:
    """Of a sub-process: its share of the cores, unless the user has given one, and a device of its own if possible.

    It imports nothing from the working folder, where files of any name may lie.
    """
    own = dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own.setdefault("OMP_NUM_THREADS", str(max(1, cores // jobs)))
    own["PYTHONSAFEPATH"] = "1"
    visible = own.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    if jobs > 1 and len(visible) > 1 and job.settings.training.devices == 1:
        own["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)]
    return own


def _write(arena: Arena, jobs: list[Job], failed: dict[str, str]) -> ArenaTable:
    """The table of what is done, in all its forms."""
    plans: dict[str, dict[str, RowPlan]] = {pair: {} for pair in arena.pairs}
    for job in jobs:
        row = plans[job.pair].setdefault(job.row, RowPlan(str(job.settings.title), job.settings.oracle, {}))
        row.folders[job.seed] = job.folder
    table = read_table(arena.title or arena.name, arena.reference, plans, failed)
    write_table(table, arena.out)
    return table
