"""All that wants a GPU, measured in one go within a time that is given: for a card that is there for minutes.

    python benchmarks/gpu_report.py [--minutes 9] [--out gpu_report.jsonl] [--only SECTION ...] [--tiny]
    python benchmarks/gpu_report.py --table FILE

Sections run in the order of their worth, each in a process of its own and within its share of the time that is left;
what one leaves over goes to those behind it. A section that fails, crashes, runs out of memory or hangs loses only
itself, and keeps the parts that were measured before. ``make gpu-report`` finds a Python for it. It takes this folder,
``src/`` and what can be imported of the packages that they use, and downloads nothing: weights are random, frames and
films are made here. A part that lacks a package says so. ``docs/performance.md`` lists sections and figures.

Every line of the output is JSON, and lies in the file (which is appended to) before it is printed. A part says
``{"section", "part", "state", "seconds", ..figures}`` the moment it is measured, and a section at its end ``{"section",
"state", "seconds", "budget_seconds", "results": {part: figures}}``. A state is ``done``, ``failed``, ``cut`` (the time
was up) or ``skipped`` (it was not begun); with all but the first goes a ``reason``. ``--table`` makes Markdown tables
of such a file, from the last line of each part.

``--tiny`` takes tiny networks and frames on a CPU: all of it runs, and no figure means anything.
"""

import argparse
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_worker import find, work

SOURCE = Path(__file__).resolve().parents[1] / "src"
START_SECONDS = 90.0
"""How long a section's process may take to import what it needs; none of its time goes by before."""

GRACE_SECONDS = 5.0
"""How long the end of a killed process is waited for: one that hangs in a driver may never end."""

Say = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Section:
    """A group of figures.

    Args:
        name: of the section.
        share: of the time, in relation to the others; about seconds where there are nine minutes.
        least: seconds below which nothing comes of it.
        measure: see :func:`gpu_worker.work`.
    """

    name: str
    share: float
    least: float
    measure: str


SECTIONS = (
    Section("environment", 60, 10, "gpu_machine:environment"),
    Section("step", 190, 30, "gpu_training:published_step"),
    Section("rendition", 60, 30, "gpu_training:straight_rendition"),
    Section("vit_step", 60, 30, "gpu_training:vit_step"),
    Section("stream", 60, 20, "gpu_prediction:stream"),
    Section("film", 45, 20, "gpu_prediction:film"),
    Section("memory", 40, 20, "gpu_training:memory_of_presets"),
    Section("tests", 70, 20, "gpu_machine:gpu_tests"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or make tables of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=Path("gpu_report.jsonl"), metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=[section.name for section in SECTIONS], metavar="SECTION")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, to see that everything runs")
    parser.add_argument("--table", type=Path, metavar="FILE", help="measure nothing: show this file as tables")
    options = parser.parse_args(argv)
    if options.table is not None:
        print(tables(options.table.read_text("utf-8").splitlines()))
        return 0
    signal.signal(signal.SIGTERM, stop)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH"))))
    if options.tiny:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    sys.path.insert(0, str(SOURCE))
    sections = [section for section in SECTIONS if options.only is None or section.name in options.only]
    try:
        states = run_all(sections, options.minutes, Lines(options.out), options.tiny)
    except KeyboardInterrupt:
        return 130
    return 1 if "failed" in states else 0


def stop(*_: object) -> None:
    """A signal ends the report as Ctrl+C does."""
    raise KeyboardInterrupt


def run_all(sections: Sequence[Section], minutes: float, say: Say, tiny: bool) -> list[str]:
    """All sections within the time; their states. While one measures, the next imports what it needs."""
    end = time.monotonic() + 60 * minutes
    states: list[str] = []
    ahead: dict[str, Child] = {}
    with tempfile.TemporaryDirectory(prefix="gpu_report_", ignore_cleanup_errors=True) as folder:

        def child_of(section: Section) -> Child:
            return ahead.pop(section.name, None) or Child(section, tiny, Path(folder))

        try:
            for number, section in enumerate(sections):
                left = end - time.monotonic()
                if left < section.least:
                    reason = f"{max(left, 0):.0f} s are left, and it needs {section.least:g} at least"
                    say({"section": section.name, "state": "skipped", "seconds": 0, "reason": reason, "results": {}})
                    states.append("skipped")
                    continue
                child = child_of(section)
                child.pipe.poll(min(left, START_SECONDS))  # until it is ready
                left = end - time.monotonic()
                for following in sections[number + 1 : number + 2]:
                    ahead[following.name] = child_of(following)
                share = left * section.share / sum(other.share for other in sections[number:])
                states.append(run(section, child, min(left, max(share, section.least)), say))
        finally:
            for child in ahead.values():
                child.end()
    return states


def run(section: Section, child: "Child", seconds: float, say: Say) -> str:
    """One section within its time: says a line for each part and one of its own; returns its state."""
    started, parts = time.monotonic(), Parts(section.name, say)
    state, reason = "cut", "the report was stopped"
    try:
        while (message := child.answer(started + seconds)) is not None and "over" not in message:
            if "ready" in message:
                child.pipe.send(started + seconds - time.monotonic())
            parts.take(message)
        if message is None:
            reason = f"{seconds:.0f} s were up"
        else:
            state, reason = message["state"], message.get("reason", "")
    except (EOFError, ConnectionError):
        state, reason = "failed", child.end()
    finally:
        for message in child.unread():
            parts.take(message)
        child.end()
        state, reason = parts.close(state, reason)
        line = {"section": section.name, "state": state, "seconds": time.monotonic() - started}
        line |= {"budget_seconds": seconds} | ({"reason": reason} if reason else {})
        say(line | {"results": parts.results})
    return state


class Child:
    """A section's process as its parent sees it.

    A card asks for fresh processes. Tiny ones are copies of this process, which saves them the imports.
    """

    def __init__(self, section: Section, tiny: bool, folder: Path) -> None:
        if tiny:
            with suppress(ImportError):  # the section says so
                find(section.measure)
        context = multiprocessing.get_context("fork" if tiny else "spawn")
        self.pipe, other = context.Pipe()
        arguments = (section.measure, tiny, folder, other)
        self.process: Any = context.Process(target=work, args=arguments)  # type: ignore[attr-defined]
        self.process.start()
        other.close()
        self._end = ""

    def answer(self, deadline: float) -> dict[str, Any] | None:
        """The next message; None when the time is up. Raises EOFError when the process has ended."""
        while (rest := deadline - time.monotonic()) > 0:
            if self.pipe.poll(min(rest, 0.5)):
                message: dict[str, Any] = self.pipe.recv()
                return message
            if not self.process.is_alive() and not self.pipe.poll():  # what it started may hold the pipe open
                raise EOFError
        return None

    def unread(self) -> Iterator[dict[str, Any]]:
        """Messages that had come in when nobody waited for them any more."""
        with suppress(EOFError, OSError):  # it has ended
            while self.pipe.poll():
                yield self.pipe.recv()

    def end(self) -> str:
        """Kill it with all that it started; says how it had ended by itself."""
        if self._end:
            return self._end
        self.process.join(0.2)
        status = self.process.exitcode
        for kill in (lambda: os.killpg(self.process.pid, signal.SIGKILL), self.process.kill):
            try:
                kill()
            except (ProcessLookupError, PermissionError):  # it is gone, or has no group of its own yet
                continue
        self.process.join(GRACE_SECONDS)
        self.pipe.close()
        by = "itself" if status is None else signal.Signals(-status).name if status < 0 else f"exit status {status}"
        self._end = f"its process was ended by {by}"
        return self._end


class Parts:
    """The parts of a section as their messages come in."""

    def __init__(self, section: str, say: Say) -> None:
        self._section, self._say = section, say
        self._name, self._doing, self._started = "", "", 0.0
        self._figures: dict[str, Any] = {}
        self.results: dict[str, dict[str, Any]] = {}

    def take(self, message: dict[str, Any]) -> None:
        """A part begins, says what it does, or ends."""
        if "part" in message:
            self._name, self._doing, self._figures, self._started = message["part"], "", {}, time.monotonic()
        elif "doing" in message:
            self._doing = message["doing"]
        elif "figures" in message:
            self._figures |= message["figures"]
        elif "end" in message:
            so_far = {} if message["state"] == "done" else self._figures
            self._keep(message.pop("end"), message | {key: so_far[key] for key in so_far if key not in message})

    def close(self, state: str, reason: str) -> tuple[str, str]:
        """State and reason of the section; a part that was under way ends as it does.

        A section has failed where a part has, and is skipped where all of them are.
        """
        if self._name:
            reason += f", during: {self._doing or self._name}"
            seconds = time.monotonic() - self._started
            self._keep(self._name, {"state": state, "seconds": seconds, **self._figures, "reason": reason})
        states = [result["state"] for result in self.results.values()]
        if state == "done" and states and ("failed" in states or set(states) == {"skipped"}):
            state = "failed" if "failed" in states else "skipped"
            reason = next(f"{name}: {part['reason']}" for name, part in self.results.items() if part["state"] == state)
        return state, reason

    def _keep(self, name: str, figures: dict[str, Any]) -> None:
        self._name = ""
        self.results[name] = figures
        self._say({"section": self._section, "part": name, **figures})


class Lines:
    """Lines of JSON, in the file before they are printed."""

    def __init__(self, out: Path) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        self._file = out.open("a", encoding="utf-8")

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Keep one line."""
        text = json.dumps(plain(line), allow_nan=False)
        self._file.write(text + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        print(text, flush=True)


def plain(value: Any) -> Any:
    """The value as JSON knows it: numbers of four digits, null for what is no number."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


# ---- tables of a file ----

UNITS = {
    "_bytes": (1e-9, " GB"),
    "seconds": (1e3, " ms"),
    "flop": (1e-12, " TFLOP"),
    "flop_per_second": (1e-12, " TFLOP/s"),
    "bytes_per_second": (1e-9, " GB/s"),
    "fraction": (100, " %"),
}
"""How a figure is shown whose name ends so, the longest ending first."""

ABOUT = {"section", "part", "state", "seconds", "reason", "results"}
"""Keys of a line that are no figures."""


def tables(lines: Sequence[str]) -> str:
    """Markdown: for each section a row for each part and a column for each figure that is a number or a word."""
    sections: dict[str, dict[str, dict[str, Any]]] = {}
    for line in map(json.loads, filter(str.strip, lines)):
        parts = sections.setdefault(line["section"], {})
        if "part" in line:
            parts[line["part"]] = line
        elif not line["results"]:
            parts["–"] = line
    return "\n\n".join(f"**{name}**\n\n{tables_of(parts)}" for name, parts in sections.items())


def tables_of(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Parts with figures of the same names share a table; figures of a single part stand below each other."""
    groups: list[tuple[list[str], list[str]]] = []  # names of parts, names of figures
    for name, part in parts.items():
        figures = [key for key, value in part.items() if key not in ABOUT and not isinstance(value, dict | list)]
        group = next((group for group in groups if not figures or set(figures) & set(group[1])), None)
        if group is None:
            groups.append(group := ([], []))
        group[0].append(name)
        group[1].extend(key for key in figures if key not in group[1])
    tables = []
    for names, columns in groups:
        rows = [["part", *columns, "state"]]
        for name in names:
            state = ": ".join(parts[name][key] for key in ("state", "reason") if key in parts[name])
            rows.append([name, *(shown(key, parts[name].get(key)) for key in columns), state])
        rows = rows if len(names) > 1 else [list(row) for row in zip(*rows, strict=True)]
        cells = [[cell.replace("|", "/") for cell in row] for row in rows]
        cells.insert(1, ["---"] * len(cells[0]))
        tables.append("\n".join(f"| {' | '.join(row)} |" for row in cells))
    return "\n\n".join(tables)


def shown(key: str, value: Any) -> str:
    """A figure for people."""
    if value is None:
        return "–"
    endings = sorted((ending for ending in UNITS if key.endswith(ending)), key=len)
    if not endings or isinstance(value, str):
        return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
    factor, unit = UNITS[endings[-1]]
    return f"{value * factor:,.4g}{unit}" if abs(value * factor) < 1e4 else f"{value * factor:,.0f}{unit}"


if __name__ == "__main__":
    raise SystemExit(main())
