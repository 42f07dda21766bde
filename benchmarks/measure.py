"""What the benchmarks share: fair medians, the machine that they ran on, the line that they end with."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch


def machine(*packages: str) -> dict[str, object]:
    """Where and when a figure was measured, with the versions of torch and of the named packages."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "numpy", *packages)},
        "date": date.today().isoformat(),
    }


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def median_seconds(
    contestants: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each contestant; they take turns (A B C A B C ...), so that a busy moment meets all of them.

    Each runs once before the clock counts. Kernels that a contestant queued on a GPU are part of its time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            finish()
            started = clock()
            run()
            finish()
            if turn > 0:
                seconds[name].append(clock() - started)
    return {name: median(times) for name, times in seconds.items()}


def say(words: str) -> None:
    """What comes next, on the error stream: a job that is cut off has said how far it came."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def finish_line(result: Mapping[str, object]) -> int:
    """Print the result as the last line, which is JSON; returns the exit status of success."""
    print(json.dumps(result), flush=True)
    return 0


def finish() -> None:
    """Wait for what was queued on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
