"""The short benchmarks run on small inputs, end with a line of JSON, and bench.py makes one table of them."""

import json
import math
import subprocess
import sys
from functools import partial

import pytest

import stcl
from closeness import NETWORK
from scripts import ROOT
from stcl.models import save_weights
from stcl.training.networks import build_network

NARROW = ["--network.weights=null", "--network.backbone_settings.width=4", "--network.head_settings={width: 4}"]


@pytest.fixture
def result(load, capsys):
    """Run a script in this process; its last line as JSON."""

    def run(name: str, *arguments: str):
        assert load(name).main(arguments) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.fixture
def table(load):
    """What bench.py shows of a script's JSON."""
    return lambda name, found: load("bench").BENCHMARKS[name].rows(found)


def is_positive(value: object) -> bool:
    return isinstance(value, float | int) and math.isfinite(value) and value > 0


# ---- the scripts ----


def test_evaluation(result, table):
    found = result("evaluation", "--size", "136", "72", "--rounds", "2")
    assert found["size"] == [136, 72] and found["counts_equal"] is True
    for part in ("counting", "tail"):
        assert set(found[part]) == {"stcl", "torchmetrics", "numpy"}
        assert set(found[f"{part}_ratio"]) == {"torchmetrics", "numpy"}
        assert all(map(is_positive, found[part].values()))
    assert found["machine"]["torchmetrics"]
    assert len(table("evaluation", found)) == 4


def test_evaluation_stops_when_counts_differ(load, monkeypatch):
    script = load("evaluation")
    monkeypatch.setattr(script.BincountMatrix, "update", lambda self, prediction, label: None)
    with pytest.raises(SystemExit, match="numpy counts other pixels"):
        script.main(["--size", "64", "32", "--rounds", "1"])


def test_histogram(result, table):
    found = result("histogram", "--sizes", "32x16", "48x24", "--rounds", "2")
    assert list(found["sizes"]) == ["32x16", "48x24"]
    for figures in found["sizes"].values():
        assert all(is_positive(figures[key]) for key in ("stcl", "skimage_bytes", "skimage_floats"))
        assert all(is_positive(figures[key]) for key in ("ratio_bytes", "ratio_floats"))
        assert 0 <= figures["largest_difference"] < 1e-5
    assert [row.ratio for row in table("histogram", found)[:2]] == [
        found["sizes"]["32x16"]["ratio_bytes"],
        found["sizes"]["32x16"]["ratio_floats"],
    ]


def test_loading(result, table):
    found = result("loading", "--size", "128", "64", "--samples", "2", "--rounds", "1")
    assert set(found["samples_per_second"]) == {"published", "opened_once", "without_cache", "with_cache"}
    assert all(map(is_positive, found["samples_per_second"].values())) and found["checksum_share"] >= 0
    assert [row.ratio for row in table("loading", found)] == [found["without_cache"], found["with_cache"]]


def test_memory_of_loading(result):
    found = result("loading", "--memory", "20")
    assert set(found["memory_mib"]) == {"without_cache", "with_cache"}
    assert all(len(sizes) == 2 and all(map(is_positive, sizes)) for sizes in found["memory_mib"].values())


def test_startup(result, table):
    found = result("startup", "--rounds", "2", "--commands", "python", "import", "help", "train_help")
    assert all(0 < found[key] < 30 for key in ("python", "import", "help", "train_help"))
    assert "print_config" not in found  # imports torch: too slow for here, and tests of the command run it
    help_row, *_ = table("startup", {**found, "print_config": 4.0})
    assert help_row.ratio == found["python"] / found["help"]


def test_a_command_that_fails_is_not_timed(load):
    with pytest.raises(subprocess.CalledProcessError):
        load("startup").run(["-c", "raise SystemExit(3)"])


def test_rendering_as_a_process(table):
    command = [sys.executable, "benchmarks/rendering.py", "--size", "64", "32", "--clips", "1"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(process.stdout.splitlines()[-1])
    assert found["size"] == [64, 32] and is_positive(found["clean"]) and is_positive(found["camera"])
    assert [row.ratio for row in table("rendering", found)] == [None, None]


def test_contestants_take_turns(load):
    turns: list[str] = []
    seconds = load("measure").median_seconds({name: lambda name=name: turns.append(name) for name in "ab"}, rounds=3)
    assert "".join(turns) == "abababab"  # one more than the rounds: the first is not timed
    assert set(seconds) == {"a", "b"} and all(value >= 0 for value in seconds.values())


# ---- one table of them ----


def says(script, text: str, status: int = 0):
    """A benchmark that prints ``text`` and ends."""
    code = f"import sys; print('first'); print({text!r}); sys.exit({status})"
    row = partial(script.Row, "speed", against="other", ratio=2.5)
    return script.Benchmark(("-c", code), lambda found: [row(figure=f"{found['rate']} frames/s")])


def test_one_table(load, tmp_path, capsys):
    script = load("bench")
    out = tmp_path / "folder" / "bench.json"
    assert script.main(["--out", str(out)], {"fast": says(script, '{"rate": 7}')}) == 0
    captured = capsys.readouterr()
    for words in ("7 frames/s", "other", "2.5", "cores", "torch"):
        assert words in captured.out
    assert "[1/1]" in captured.err
    written = json.loads(out.read_text("utf-8"))
    assert written["results"] == {"fast": {"rate": 7}} and written["failed"] == {}
    assert {"processor", "cores", "torch", "date"} <= set(written["machine"])
    (row,) = written["rows"]
    assert (row["what"], row["figure"], row["against"], row["ratio"]) == ("speed", "7 frames/s", "other", 2.5)
    assert row["command"].startswith("python -c")


def test_a_failing_script_is_shown_and_the_others_run(load, tmp_path, capsys):
    script = load("bench")
    benchmarks = {
        "broken": says(script, "no room left", status=3),
        "silent": says(script, "done, no figures"),
        "other": says(script, '{"frames": 7}'),
        "fast": says(script, '{"rate": 7}'),
    }
    out = tmp_path / "bench.json"
    assert script.main(["--out", str(out)], benchmarks) == 1
    shown = capsys.readouterr().out
    assert "no room left" in shown and "7 frames/s" in shown
    written = json.loads(out.read_text("utf-8"))
    assert list(written["failed"]) == ["broken", "silent", "other"] and written["failed"]["broken"] == "no room left"
    assert "rate" in written["failed"]["other"] and list(written["results"]) == ["fast"]
    assert [row["figure"] for row in written["rows"]] == ["failed"] * 3 + ["7 frames/s"]


def test_a_script_that_hangs_has_failed(load, monkeypatch, capsys):
    script = load("bench")
    monkeypatch.setattr(script, "LIMIT_SECONDS", 0.2)
    hanging = script.Benchmark(("-c", "import time; time.sleep(60)"), lambda found: [])
    assert script.main([], {"hanging": hanging}) == 1
    assert "still running" in capsys.readouterr().out


def test_only_some(load, capsys):
    script = load("bench")
    benchmarks = {name: says(script, f'{{"rate": {rate}}}') for name, rate in (("one", 1), ("two", 2))}
    assert script.main(["--only", "two"], benchmarks) == 0
    shown = capsys.readouterr().out
    assert "2 frames/s" in shown and "1 frames/s" not in shown


def test_every_script_of_the_table_exists(load):
    for benchmark in load("bench").BENCHMARKS.values():
        assert (ROOT / benchmark.arguments[0]).is_file()


def test_exported_graphs_are_measured_beside_the_network(result, tmp_path):
    settings = stcl.load_settings("twinstreets/source_only", NARROW)
    save_weights(build_network(settings), tmp_path / "tiny.safetensors", {"config": settings.dump()})
    found = result("exported", "--weights", str(tmp_path / "tiny.safetensors"), "--sizes", "64x32", "--rounds", "1")
    for name in ("onnx", "torch-export"):
        entry = found["sizes"]["64x32"][name]
        assert min(entry["frame"], entry["ratio"], entry["export"], *entry["bytes"].values()) > 0
        assert entry["difference"] < NETWORK and entry["agreement"] > 0.99


@pytest.mark.parametrize("batch", ["1", "2"])
def test_streaming(result, batch):
    found = result("streaming", "--size", "64", "32", "--frames", "6", "--rounds", "1", "--batch", batch)
    assert set(found) == {"ratio", "max_difference"}
    assert is_positive(found["ratio"]) and 0 <= found["max_difference"] <= NETWORK


def test_video_access(result):
    found = result("video_access", "--frames", "30", "--clips", "3", "--key-frame-every", "10")
    assert is_positive(found["clip_ms"]) and 3 <= found["decoded_a_clip"] <= 30 and len(found["memory_mb"]) == 3
