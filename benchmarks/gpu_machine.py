"""Sections of gpu_report.py about the machine: what it is and how fast at best, and whether the tests pass there."""

import importlib.util
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpu_worker import Report
from measure import device, machine, matmul_rate, seconds_in_a_row
from packages import unfit

ROOT = Path(__file__).resolve().parents[1]
GPU_TESTS = ("tests/training/test_cuda.py", "tests/methods/test_no_sync.py")
"""What ``make gpu`` runs."""

Figures = Mapping[str, Any]


def environment(report: Report) -> None:
    """The rates that other figures are held against; card, driver and versions."""
    side = 64 if report.tiny else None

    def rates() -> Figures:
        figures = {"bfloat16_flop_per_second": matmul_rate(device(), torch.bfloat16, side)}
        report.doing("matrix products in float32", **figures)
        figures["float32_flop_per_second"] = matmul_rate(device(), torch.float32, side)
        with tf32():
            figures["tf32_flop_per_second"] = matmul_rate(device(), torch.float32, side)
        return figures | card_state()

    report.part("matrix products", rates)
    report.part("copies", lambda: copies(2**20 if report.tiny else 2**30))
    report.part("machine", about)


@contextmanager
def tf32() -> Iterator[None]:
    """Products of float32 may round their factors to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def about() -> Figures:
    """Card, driver and versions; packages that are missing or of another version than wanted."""
    packages = ("lightning", "transformers", "kornia", "av", "opencv-python-headless", "scikit-image")
    figures: dict[str, Any] = {**machine(*packages), "cuda": torch.version.cuda, **card_state()}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        figures |= {"card_bytes": card.total_memory, "capability": f"{card.major}.{card.minor}"}
        figures |= {"multiprocessors": card.multi_processor_count, "cudnn": torch.backends.cudnn.version()}
    figures["tf32_in_convolutions"] = torch.backends.cudnn.allow_tf32
    figures["missing_packages"] = ", ".join(name for name, found in unfit().items() if found is None)
    figures["other_versions"] = ", ".join(f"{name} {found}" for name, found in unfit().items() if found is not None)
    return figures


def card_state() -> Figures:
    """Driver, clocks and power at this moment as the card's own tool tells them, where there is one."""
    fields = {
        "driver_version": "driver",
        "clocks.sm": "clock_mhz",
        "clocks.mem": "memory_clock_mhz",
        "power.draw": "power_w",
        "power.limit": "power_limit_w",
        "temperature.gpu": "temperature_c",
    }
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields.values(), (word.strip() for word in answer.split(",")), strict=False))


def copies(size: int) -> Figures:
    """Bytes a second: within the card, read and written; from the host to it, page-locked and not."""
    here, there = torch.ones(2, size, dtype=torch.uint8, device=device())
    host = torch.ones(size // 4, dtype=torch.uint8)
    hosts = {"pageable": host} | ({"pinned": host.pin_memory()} if torch.cuda.is_available() else {})
    ways: dict[str, tuple[int, Callable[[], object]]] = {"card": (2 * size, lambda: here.copy_(there))}
    for name, source in hosts.items():
        ways[name] = size // 4, lambda source=source: here[: size // 4].copy_(source, non_blocking=True)
    for _, run in ways.values():
        run()
    return {f"{name}_bytes_per_second": moved / median(seconds_in_a_row(run, 5)) for name, (moved, run) in ways.items()}


# ---- tests ----


class Tally:
    """Counts how tests end, as a plugin of pytest; names those that fail, and files that cannot be read."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.counts = {"passed": 0, "failed": 0, "skipped": 0}
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A test's set-up, call or end."""
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
            if report.outcome == "failed":
                self.failures.append(report.nodeid)
            self.report.so_far(**self.counts, failures=self.failures, last_test=report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        """A file's tests were looked for."""
        if report.failed:
            self.failures.append(f"{report.nodeid}: {str(report.longrepr).strip().splitlines()[-1]}")


def gpu_tests(report: Report) -> None:
    """The tests that need a GPU."""

    def run() -> Figures:
        import av  # noqa: F401  tests/conftest.py needs it
        import pytest
        import pytest_timeout  # noqa: F401  pyproject.toml sets it

        words = ["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *(str(ROOT / test) for test in GPU_TESTS)]
        if importlib.util.find_spec("xdist") is not None and not report.tiny:
            words += ["-n", "4"]
        words += ["-k", "a_mistake_is_seen and item or a_run"] if report.tiny else []
        tally = Tally(report)
        status = int(pytest.main(words, plugins=[tally]))
        figures = {**tally.counts, "failures": tally.failures}
        if status not in (0, 1):
            raise RuntimeError(f"pytest ended with status {status}: {', '.join(tally.failures)}")
        return figures | ({"state": "failed", "reason": ", ".join(tally.failures)} if tally.failures else {})

    report.part("make gpu", run)
