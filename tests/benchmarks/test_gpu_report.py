"""The report for a GPU runs here on tiny inputs; what fails, hangs or dies loses only itself."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import stcl
from scripts import BENCHMARKS, ROOT

SECTIONS = ["environment", "step", "rendition", "vit_step", "stream", "film", "memory", "tests"]


def lines_of(text: str) -> list[dict]:
    """Every line, which is strict JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


# ---- the real sections, tiny ----


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A whole tiny report: exit status, what was printed, the file."""
    out = tmp_path_factory.mktemp("report") / "folder" / "report.jsonl"
    # minutes that a busy machine does not use up either
    command = [sys.executable, str(BENCHMARKS / "gpu_report.py"), "--tiny", "--minutes", "60", "--out", str(out)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=540, cwd=out.parents[1], check=False)
    return process, out


def test_every_section_runs_on_a_cpu(tiny):
    process, out = tiny
    lines = lines_of(process.stdout)
    found = [line for line in lines if "part" not in line]
    assert [line["section"] for line in found] == SECTIONS
    assert {line["section"]: line.get("reason") for line in found} == dict.fromkeys(SECTIONS), process.stderr[-2000:]
    assert {line["state"] for line in found} == {"done"} and process.returncode == 0
    assert all(0 < line["seconds"] < line["budget_seconds"] for line in found)
    assert out.read_text("utf-8") == process.stdout
    parts = [line for line in lines if "part" in line]
    for section in found:
        own = {line["part"]: line for line in parts if line["section"] == section["section"]}
        assert section["results"] == {name: without(line, "section", "part") for name, line in own.items()}
    assert lines.index(found[0]) == len(found[0]["results"])  # a part is said before its section has ended
    assert [*out.parents[1].iterdir()] == [out.parent] and [*out.parent.iterdir()] == [out]  # and nothing else is left


def without(line: dict, *keys: str) -> dict:
    return {key: value for key, value in line.items() if key not in keys}


def test_figures_of_the_parts(tiny):
    results = {line["section"]: line["results"] for line in lines_of(tiny[0].stdout) if "part" not in line}
    for section in ("step", "vit_step"):
        assert list(results[section]) == ["24gb", "24gb, compiled"]
        for part in results[section].values():
            achieved = part["flop"] / part["step_seconds"]
            assert part["flop"] > 1e7 and part["peak_bytes"] > 0
            assert part["flop_per_second"] == pytest.approx(achieved, rel=1e-3)
            assert part["matmul_fraction"] == pytest.approx(achieved / part["matmul_flop_per_second"], rel=1e-3)
    ratio = results["rendition"]["ratio"]
    assert ratio["ratio"] == pytest.approx(ratio["yardstick_seconds"] / ratio["step_seconds"], rel=1e-3)
    assert set(ratio["parts"]) == {"ours", "yardstick"} and ratio["colours_matched"] is True
    assert results["rendition"]["gradients"]["max_smooth_gradient_difference"] < 1e-4
    stream = results["stream"]
    assert len(stream) == 9 and all(part["state"] == "done" for name, part in stream.items() if "tiles" not in name)
    tiles = {name: part for name, part in stream.items() if "tiles" in name}
    assert [part["state"] for part in tiles.values()] == ["done", "done", "skipped"]
    assert "stride" in tiles["dinov2_large, tiles of 64x64"]["reason"]
    assert all(part["frames_per_second"] > 0 for part in results["film"].values())
    assert results["memory"]["80gb, counted"]["measured_fraction"] == 1  # on a CPU the count is exact
    assert results["tests"]["make gpu"]["passed"] == 1 and results["tests"]["make gpu"]["skipped"] > 0


def test_it_becomes_tables(tiny, script, capsys):
    assert script.main(["--table", str(tiny[1])]) == 0
    shown = capsys.readouterr().out
    for name in SECTIONS:
        assert f"**{name}**" in shown
    (row,) = [line for line in shown.splitlines() if line.startswith("| 24gb, compiled |") and "32-true" in line]
    assert " ms |" in row and " TFLOP/s |" in row and " % |" in row and row.endswith("| done |")


# ---- sections that go wrong ----

WRONG = """
import os, signal, time

def well(report):
    report.part("one", lambda: {"figure": 1 / 3})
    print("what a library prints")

def raises(report):
    well(report)
    report.part("two", lambda: 1 / 0)
    report.part("three", lambda: {"figure": float("nan")})

def hangs(report):
    well(report)
    def wait():
        report.doing("waiting for ever", so_far=3)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    report.part("two", wait)

def dies(report):
    well(report)
    report.part("two", lambda: os.kill(os.getpid(), signal.SIGKILL))

def lacks(report):
    try:
        import nowhere
    except ImportError as error:
        raise RuntimeError("this network needs more than there is") from error

def itself(report):
    report.part("process", lambda: {"pid": os.getpid()})
    hangs(report)

def breaks(report):
    raise RuntimeError("device-side assert")
"""


@pytest.fixture
def script(load):
    return load("gpu_report")


@pytest.fixture
def sections(script, tmp_path, monkeypatch):
    """``sections("well", "dies")``: of a module that goes wrong, in processes of their own."""
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "absent.py").write_text("import nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    return lambda *names, least=1.0: [script.Section(name, 1, least, f"wrong:{name}") for name in names]


def test_a_section_loses_only_itself(script, sections, capfd, tmp_path):
    out = tmp_path / "out.jsonl"
    found = sections("well", "raises", "dies", "hangs", "lacks", "absent", "breaks", "well")
    found[3] = script.Section("hangs", 0, 1.0, "wrong:hangs")  # a second, however much is left
    found[5] = script.Section("absent", 1, 1.0, "absent:measure")
    states = script.run_all(found, 1, script.Lines(out), tiny=False)
    assert states == ["done", "failed", "failed", "cut", "skipped", "skipped", "failed", "done"]
    printed = capfd.readouterr()
    assert out.read_text("utf-8") == printed.out and "what a library prints" in printed.err
    lines = lines_of(printed.out)
    wholes = [line for line in lines if "part" not in line]
    assert [line["section"] for line in wholes] == [section.name for section in found]
    well, raises, dies, hangs, lacks, absent, breaks, again = wholes
    for section in (well, raises, dies, hangs, again):  # what was measured before stays
        assert without(section["results"]["one"], "seconds") == {"state": "done", "figure": 0.3333}
    assert "reason" not in well and set(well["results"]) == {"one"}
    assert raises["results"]["two"]["state"] == "failed" and "ZeroDivisionError" in raises["results"]["two"]["reason"]
    assert raises["reason"].startswith("two: ZeroDivisionError")
    assert raises["results"]["three"]["figure"] is None  # JSON knows no NaN
    assert dies["results"]["two"]["state"] == "failed" and "SIGKILL" in dies["reason"]
    assert hangs["results"]["two"]["state"] == "cut" and hangs["results"]["two"]["so_far"] == 3
    assert hangs["reason"] == "1 s were up, during: waiting for ever"
    assert lacks["reason"] == absent["reason"] == "needs the package 'nowhere', which is not here"
    assert "device-side assert" in breaks["reason"] and breaks["results"] == {}


def test_what_is_left_goes_to_the_sections_in_order(script, sections, capsys, tmp_path):
    found = [*sections("well", least=1), *sections("raises", least=1000), *sections("well", least=1)]
    assert script.run_all(found, 0.5, script.Lines(tmp_path / "out.jsonl"), tiny=False) == ["done", "skipped", "done"]
    first, second, third = (line for line in lines_of(capsys.readouterr().out) if "part" not in line)
    assert first["budget_seconds"] == pytest.approx(10, abs=1) and 20 < third["budget_seconds"] < 30
    assert "are left, and it needs 1000 at least" in second["reason"] and second["results"] == {}


def test_without_time_nothing_is_begun(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(script, "Child", None)
    monkeypatch.setattr(script.os, "environ", dict(os.environ))
    assert script.main(["--minutes", "0.1", "--out", str(tmp_path / "out.jsonl")]) == 0
    lines = lines_of(capsys.readouterr().out)
    assert [line["section"] for line in lines] == SECTIONS
    assert all(line["state"] == "skipped" and "6 s are left" in line["reason"] for line in lines)


NO_GPU = """
import sys, types

class cuda:
    def init():
        raise RuntimeError("Found no NVIDIA driver")

sys.modules["torch"] = types.SimpleNamespace(cuda=cuda, __version__="3.0")

def measure(report):
    raise AssertionError
"""


def test_a_machine_without_a_gpu_is_told_so(script, capsys, tmp_path, monkeypatch):
    (tmp_path / "no_gpu.py").write_text(NO_GPU)
    monkeypatch.syspath_prepend(tmp_path)
    found = [script.Section("section", 1, 1, "no_gpu:measure")]
    assert script.run_all(found, 5, script.Lines(tmp_path / "out.jsonl"), tiny=False) == ["skipped"]
    (line,) = lines_of(capsys.readouterr().out)
    assert line["reason"] == "torch 3.0 finds no GPU (Found no NVIDIA driver); --tiny runs on a CPU"


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_report_that_is_stopped_leaves_no_process(script, tmp_path, sent, status):
    (tmp_path / "wrong.py").write_text(WRONG)
    out = tmp_path / "out.jsonl"
    driver = f"""
import sys
sys.path[:0] = [{str(BENCHMARKS)!r}, {str(tmp_path)!r}]
import gpu_report
gpu_report.SECTIONS = (gpu_report.Section("itself", 1, 1, "wrong:itself"),)
raise SystemExit(gpu_report.main(["--tiny", "--out", {str(out)!r}]))
"""
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    folder = {**os.environ, "TMPDIR": str(tmp_path)}  # a killed one leaves its files
    process = subprocess.Popen([sys.executable, "-c", driver], **streams, env=folder)
    assert process.stderr is not None
    while b"waiting for ever" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(sent)
    assert process.wait(60) == status
    lines = lines_of(out.read_text("utf-8"))
    assert await_end(lines[0]["pid"])
    if sent == signal.SIGTERM:
        assert lines[-1]["section"] == "itself" and lines[-1]["state"] == "cut" and lines[-2]["part"] == "two"
        assert lines[-1]["reason"] == "the report was stopped, during: waiting for ever"


def await_end(pid: int, seconds: float = 60) -> bool:
    """Whether a process ends in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


# ---- what a part says ----


def test_a_step_that_was_not_compiled_is_not_called_compiled(script, monkeypatch):
    """Where the compiler fails, training goes on without it; its time is not that of a compiled step."""
    import gpu_training

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler here")

    size = gpu_training.SIZES["published"]
    settings = stcl.load_settings(size.config, [*size.overrides, *gpu_training.TINY_CNN], "24gb")
    monkeypatch.setattr(torch, "compile", fails)
    report = SimpleNamespace(tiny=True, left=60.0, doing=lambda *_, **__: None)
    with pytest.raises(RuntimeError, match=r"ran without a compiler: .*no compiler here"):
        gpu_training.step(report, settings, "24gb", True, {"24gb": 1})


# ---- the target of the Makefile ----

PYTHON = """#!/bin/sh
case "$*" in
  "-c import torch") exit {torch} ;;
  benchmarks/gpu_report.py*) echo "{name} $PYTHONPATH $*" ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """``make("venv", "own")``: `make gpu-report` in a checkout where some Pythons have torch; what is run."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)

    def run(*with_torch: str, stamped: bool = False) -> subprocess.CompletedProcess[str]:
        for name, path in (("venv", tmp_path / ".venv" / "bin" / "python"), ("own", tmp_path / "own")):
            path.write_text(PYTHON.format(name=name, torch=int(name not in with_torch)))
            path.chmod(0o755)
        for stamp in ("torch", "dev") if stamped else ():
            (tmp_path / ".venv" / f".stamp-{stamp}").touch()
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "PYTHONPATH"))}
        command = ["make", "gpu-report", f"PYTHON={tmp_path / 'own'}", "GPU_ARGS=--minutes 3"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)

    return run


@pytest.mark.parametrize(
    ("with_torch", "stamped", "chosen"),
    [(("venv", "own"), True, "venv"), (("venv", "own"), False, "venv"), (("own",), False, "own")],
    ids=["an environment", "one that cannot be brought up to date", "none"],
)
def test_make_finds_a_python(make, with_torch, stamped, chosen):
    done = make(*with_torch, stamped=stamped)
    assert done.stdout == f"{chosen} src benchmarks/gpu_report.py --minutes 3\n", done.stderr
    assert ("cannot be brought up to date" in done.stderr) is not stamped


def test_make_says_that_no_python_has_torch(make):
    done = make()
    assert done.returncode != 0 and "No Python with torch" in done.stderr and "PYTHON=" in done.stderr


def test_make_gpu_runs_the_same_tests(script):
    import gpu_machine

    (line,) = [line for line in (ROOT / "Makefile").read_text("utf-8").splitlines() if "test_cuda.py" in line]
    assert line.split()[-2:] == [*gpu_machine.GPU_TESTS]
