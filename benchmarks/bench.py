"""The short benchmarks, one after the other, and one table of what they measured; ``make bench`` runs it.

python benchmarks/bench.py [--only startup histogram ...] [--out FILE]

Each script runs as a process of its own and ends with a line of JSON, which the table is made from. A ratio above 1
means that ours is faster than what it is held against. A script that fails is a row that says so with its last line,
the others still run, and the exit status is 1.

``--out FILE`` writes ``{"machine": .., "rows": [{"what", "figure", "against", "ratio", "command"}], "results": {script:
its JSON}, "failed": {script: its last line}}``; a ratio is a number, or null where there is nothing to hold against.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import machine
from rich.console import Console
from rich.table import Table

from stcl.files.writing import write_atomic

FOLDER = Path(__file__).parent
LIMIT_SECONDS = 600
"""A script that takes longer has failed."""

FAILED = "failed"


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    figure: str
    against: str = "–"
    ratio: float | None = None
    command: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder with arguments that keep it short, and what the table shows of its JSON."""

    arguments: tuple[str, ...]
    rows: Callable[[Mapping[str, Any]], list[Row]]

    @property
    def command(self) -> str:
        """As one would type it."""
        return " ".join(["python", *self.arguments])


def startup_rows(result: Mapping[str, Any]) -> list[Row]:
    """What a person waits for, beside a bare interpreter."""
    shown = {"stcl --help": "help", "stcl train --help": "train_help", "stcl train .. --print-config": "print_config"}
    floor = f"python -c pass: {_ms(result['python'])}"
    return [Row(what, _ms(result[key]), floor, result["python"] / result[key]) for what, key in shown.items()]


def histogram_rows(result: Mapping[str, Any]) -> list[Row]:
    """Both speeds of skimage."""
    return [
        Row(
            f"histogram matching, 4x2 frames, {size}",
            _ms(found["stcl"]),
            f"skimage on {kind}: {_ms(found[f'skimage_{kind}'])}",
            found[f"ratio_{kind}"],
        )
        for size, found in result["sizes"].items()
        for kind in ("bytes", "floats")
    ]


def evaluation_rows(result: Mapping[str, Any]) -> list[Row]:
    """Counting alone and the whole tail."""
    width, height = result["size"]
    titles = {
        "counting": f"confusion matrix, {width}x{height}, 19 classes",
        "tail": f"evaluation after the network, {width}x{height}",
    }
    return [
        Row(title, f"{result[part]['stcl']} frames/s", f"{other}: {result[part][other]} frames/s", ratio)
        for part, title in titles.items()
        for other, ratio in result[f"{part}_ratio"].items()
    ]


def rendering_rows(result: Mapping[str, Any]) -> list[Row]:
    """Both styles; there is nothing to hold them against."""
    width, height = result["size"]
    styles = [key for key in result if key != "size"]
    return [Row(f"rendering '{style}', {width}x{height}, one core", f"{result[style]} frames/s") for style in styles]


def loading_rows(result: Mapping[str, Any]) -> list[Row]:
    """This loader without and with prepared data, beside the published way."""
    rate = result["samples_per_second"]
    titles = {"without_cache": "loading a target pair, one core", "with_cache": "  the same, prepared"}
    against = f"as published: {rate['published']} samples/s"
    return [Row(title, f"{rate[way]} samples/s", against, result[way]) for way, title in titles.items()]


def train_step_rows(result: Mapping[str, Any]) -> list[Row]:
    """The step beside the plain rendition of the published one, and beside the device's own limit."""
    return [
        Row(
            "STCL training step, built-in size",
            _ms(result["step_seconds"]),
            f"as published: {_ms(result['yardstick_seconds'])}",
            result["ratio"],
        ),
        Row("  of the device's rate of matrix products", f"{100 * result['fraction_of_matmul_rate']:.0f} %"),
        Row("  largest difference of gradients", f"{result['max_gradient_difference']:.1e}", "as published"),
    ]


def streaming_rows(result: Mapping[str, Any]) -> list[Row]:
    """Frames that pass the network once beside frames that pass it twice."""
    difference = f"pairs; largest difference {result['max_difference']:.1e} of the largest score"
    return [Row("a stream of frames, 256x128", "each passes the network once", difference, result["ratio"])]


BENCHMARKS = {
    "startup": Benchmark(("benchmarks/startup.py", "--rounds", "3"), startup_rows),
    "histogram": Benchmark(("benchmarks/histogram.py",), histogram_rows),
    "evaluation": Benchmark(("benchmarks/evaluation.py",), evaluation_rows),
    "rendering": Benchmark(("benchmarks/rendering.py", "--clips", "5"), rendering_rows),
    "loading": Benchmark(("benchmarks/loading.py", "--samples", "2", "--rounds", "3"), loading_rows),
    "train_step": Benchmark(
        ("benchmarks/train_step.py", "--size", "builtin", "--steps", "5", "--part-steps", "1", "--gradient-steps", "1"),
        train_step_rows,
    ),
    "streaming": Benchmark(("benchmarks/streaming.py", "--frames", "21", "--rounds", "4"), streaming_rows),
}


class FailedError(Exception):
    """A script ended badly; the message is its last line."""


def main(argv: Sequence[str] | None = None, benchmarks: Mapping[str, Benchmark] = BENCHMARKS) -> int:
    """Run all benchmarks, or those that are named, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=benchmarks, default=list(benchmarks), metavar="NAME")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the table as JSON")
    options = parser.parse_args(argv)
    rows: list[Row] = []
    results: dict[str, Mapping[str, Any]] = {}
    failed: dict[str, str] = {}
    for number, name in enumerate(options.only, start=1):
        benchmark = benchmarks[name]
        print(f"[{number}/{len(options.only)}] {benchmark.command} ...", end=" ", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            results[name], found = run(benchmark)
        except FailedError as failure:
            failed[name], found = str(failure), [Row(name, FAILED, str(failure))]
        print(f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        rows += [Row(row.what, row.figure, row.against, row.ratio, benchmark.command) for row in found]
    where = machine("lightning", "torchmetrics", "scikit-image")
    show(rows, where)
    if options.out is not None:
        table = {"machine": where, "rows": [asdict(row) for row in rows], "results": results, "failed": failed}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.out, json.dumps(table, indent=1).encode())
    return 1 if failed else 0


def run(benchmark: Benchmark) -> tuple[Mapping[str, Any], list[Row]]:
    """The JSON of one script and what the table shows of it."""
    command = [sys.executable, *benchmark.arguments]
    try:
        process = subprocess.run(
            command, cwd=FOLDER.parent, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"still running after {LIMIT_SECONDS} s") from None
    last = _last_line(process.stdout)
    if process.returncode != 0:
        raise FailedError(_last_line(process.stderr) or last or f"exit status {process.returncode}")
    try:
        result = json.loads(last)
        return result, benchmark.rows(result)
    except (ValueError, KeyError, TypeError) as error:
        raise FailedError(f"its last line is not the expected JSON ({error!r}): {last}") from None


def show(rows: Sequence[Row], where: Mapping[str, object]) -> None:
    """The table, under a line about the machine."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file or a pipe has no width to fit into
    graphics = where["gpu"] or "no GPU"
    known = ("processor", "cores", "threads", "gpu", "date")
    versions = ", ".join(f"{name} {version}" for name, version in where.items() if name not in known)
    console.print(f"{where['processor']}, {where['cores']} cores, {graphics}; {versions}; {where['date']}")
    table = Table("what", "figure", "against", "ratio", "command", caption="ratio above 1: ours is faster")
    for above, row in zip([None, *rows], rows, strict=False):
        ratio = "–" if row.ratio is None else f"{row.ratio:.3g}"
        command = "" if above is not None and above.command == row.command else row.command
        style = "red" if row.figure == FAILED else None
        table.add_row(row.what, row.figure, row.against, ratio, command, style=style)
    console.print(table)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.1f} ms"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


if __name__ == "__main__":
    raise SystemExit(main())
