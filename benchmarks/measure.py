"""What the benchmarks share: fair medians, the machine that they ran on, the line that they end with."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from packages import installed


def machine(*packages: str) -> dict[str, object]:
    """Where and when a figure was measured, with the versions of torch and of the named packages (null: not there)."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: installed(package) for package in ("torch", "numpy", *packages)},
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


def seconds_in_a_row(run: Callable[[], object], count: int) -> list[float]:
    """Seconds of each of ``count`` calls one behind the other; on a GPU by its own clock, and nothing waits between."""
    if not torch.cuda.is_available():
        moments = [time.perf_counter()]
        for _ in range(count):
            run()
            moments.append(time.perf_counter())
        return [end - start for start, end in pairwise(moments)]
    finish()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    finish()
    return [start.elapsed_time(end) / 1e3 for start, end in pairwise(events)]


def matmul_rate(device: torch.device, dtype: torch.dtype | None = None, side: int | None = None) -> float:
    """Floating-point operations a second of a large square matrix product: what the device can do at best.

    Args:
        device: where.
        dtype: bfloat16 on a GPU and float32 on a CPU unless told.
        side: of the matrices; 8192 on a GPU and 1024 on a CPU unless told.
    """
    on_gpu = device.type == "cuda"
    side, rounds = side or (8192 if on_gpu else 1024), 10 if on_gpu else 1
    a, b = torch.randn(2, side, side, device=device, dtype=dtype or (torch.bfloat16 if on_gpu else torch.float32))
    products: list[Callable[[], object]] = [lambda: a @ b]
    if not on_gpu and a.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        blocked = a.to_mkldnn()  # for the library of the convolutions, often the faster one; not all have bfloat16
        products.append(lambda: F.linear(blocked, b))
    seconds = []
    for product in products * 10:
        finish()
        started = time.perf_counter()
        for _ in range(rounds):
            product()
        finish()
        seconds.append((time.perf_counter() - started) / rounds)
    return 2 * side**3 / min(seconds)


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
