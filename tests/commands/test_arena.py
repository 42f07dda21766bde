"""An arena from its file to its table: what runs in which order, what is never done twice, and what is refused."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from stcl.cli import main
from stcl.commands.arena import run as program
from stcl.commands.arena.plan import Arena, slug
from stcl.errors import SettingError
from stcl.resources import arena_path, config_folder, list_arenas, list_configs
from stcl.training.config import merge
from stcl.training.run_folder import RunFolder
from stcl.twinstreets import export as rendering

TINY = {
    "network": {"backbone_settings": {"width": 8}, "weights": None},
    "training": {"steps": 2, "batch_size": 2, "workers": 0, "accelerator": "cpu"},
    "source": {"size": [64, 32]},
    "target": {"size": [64, 32]},
}
PLAN = {
    "name": "tiny",
    "reference": "source_only",
    "seeds": [0, 1],
    "methods": {"source_only": {}, "Faster, no colours": {"config": "source_only", "seeds": [1, 0]}},
    "settings": TINY,
    "pairs": {"one": {"configs": "twinstreets", "streets": {"size": [64, 32], "clips": 2, "unseen": 2}}},
}


@pytest.fixture
def plan(tmp_path: Path):
    """``plan(**groups)``: the file of a tiny arena with groups laid over it; what is ``...`` is taken out."""

    def write(**groups: Any) -> Path:
        data = {key: value for key, value in merge(PLAN, groups).items() if value is not ...}
        data["methods"] = {key: value for key, value in data.get("methods", {}).items() if value is not ...}
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return path

    return write


class InProcess:
    """Stands in for a sub-process: the command runs here, at once."""

    started: list[str] = []

    def __init__(self, command: list[str], stdout: Any, **_: object) -> None:
        assert command[:3] == [sys.executable, "-m", "stcl.cli"]
        InProcess.started.append(" ".join(Path(word).name if "/" in word else word for word in command[3:]))
        words = io.StringIO()
        with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
            self.returncode = main(command[3:])
        stdout.write(words.getvalue().encode())

    def poll(self) -> int:
        return self.returncode

    def kill(self) -> None:
        pass


@pytest.fixture
def here(monkeypatch):
    """Commands run in this process; yields their words."""
    monkeypatch.setattr(program, "Popen", InProcess)
    monkeypatch.setattr(program, "POLL_SECONDS", 0)
    monkeypatch.setattr(InProcess, "started", [])
    return InProcess.started


def run(path: Path, out: Path, *words: str) -> int:
    return main(["arena", str(path), "--out", str(out), "--quiet", *words])


# ---- runs ----


def test_an_arena_goes_on_after_a_kill_and_is_done_once(plan, here, tmp_path, monkeypatch, capsys):
    path, out = plan(), tmp_path / "out"
    start = InProcess.__init__

    def killed(self, command, **more):
        if len(here) == 5:
            raise KeyboardInterrupt
        start(self, command, **more)

    monkeypatch.setattr(InProcess, "__init__", killed)
    assert run(path, out) == 130
    # a whole comparison of one seed comes first
    first = [Path("runs/one/source_only/seed-0"), Path("runs/one/faster-no-colours/seed-0")]
    assert here == ["train seed-0.yaml --out seed-0 --quiet", "evaluate seed-0 --quiet"] * 2 + [
        "train seed-1.yaml --out seed-1 --quiet"
    ]
    assert all((out / folder / "results.json").is_file() for folder in first)
    document = json.loads((out / "arena.json").read_text())["pairs"]["one"]["rows"]
    assert [list(row["runs"]) for row in document.values()] == [["0"], ["0"]]
    before = {file: file.stat().st_mtime_ns for folder in first for file in (out / folder).rglob("*")}
    (out / "runs/one/source_only/seed-1/model.safetensors").unlink()  # as if killed before the end
    here.clear()
    monkeypatch.setattr(InProcess, "__init__", start)
    assert run(path, out) == 0
    assert here[:2] == ["train --resume seed-1 --quiet", "evaluate seed-1 --quiet"]
    assert len(here) == 4
    assert {file: file.stat().st_mtime_ns for file in before} == before
    here.clear()
    told = capsys.readouterr()
    assert "1 of 2 left" in told.err and "0 of 2 left" in told.err
    assert run(path, out) == run(path, out, "--table") == 0
    assert not here
    document = json.loads((out / "arena.json").read_text())["pairs"]["one"]["rows"]
    assert [row["label"] for row in document.values()] == ["Source only", "Faster, no colours"]
    for name, row in document.items():
        for seed, done in row["runs"].items():
            result = json.loads((out / "runs/one" / slug(name) / f"seed-{seed}" / "results.json").read_text())
            assert (result["seed"], result["miou"]) == (int(seed), pytest.approx(done["miou"], abs=2e-3))
    assert document["source_only"]["difference"]["mean"] is None


def test_a_run_that_fails_is_reported_and_the_others_go_on(plan, here, tmp_path, capsys):
    broken = {"settings": {"network": {"weights": "nowhere.safetensors"}}}
    path = plan(seeds=[0], methods={"Faster, no colours": ..., "broken": broken | {"config": "source_only"}})
    assert run(path, tmp_path / "out") == 1
    told = capsys.readouterr()
    assert "stcl: one, broken, seed 0 failed: There is no weights file 'nowhere.safetensors'" in told.err
    assert "exit status 2" in told.err and "seed-0.log" in told.err
    document = json.loads((tmp_path / "out" / "arena.json").read_text())
    assert list(document["failed"]) == ["one, broken, seed 0"]
    rows = document["pairs"]["one"]["rows"]
    assert [len(rows[name]["runs"]) for name in ("source_only", "broken")] == [1, 0]
    assert "There is no weights file" in (tmp_path / "out" / "arena.html").read_text()


def test_a_run_of_another_process_is_left_to_it(plan, here, tmp_path, capsys, locked_elsewhere):
    folder = tmp_path / "out" / "runs" / "one" / "source_only" / "seed-0"
    folder.mkdir(parents=True)
    with locked_elsewhere(folder / ".lock"):
        assert run(plan(seeds=[0], methods={"Faster, no colours": {"seeds": [0]}}), tmp_path / "out") == 0
    assert "one, source_only, seed 0: another process is at it" in capsys.readouterr().err
    assert len(here) == 2  # the other row


@pytest.mark.parametrize("own", ["arena.html", "arena.md", "arena.json", "runs/one/source_only/seed-0.yaml"])
def test_files_of_other_people_are_refused_before_the_work(plan, here, tmp_path, capsys, own):
    (tmp_path / "out" / own).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / own).write_text("mine")
    assert run(plan(seeds=[0]), tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert f"{own.rpartition('/')[2]} " in message and "was not written by 'stcl arena': it stays as it is" in message
    assert (tmp_path / "out" / own).read_text() == "mine" and not here


def test_the_data_of_a_pair_are_made_once(plan, tmp_path, monkeypatch):
    """Another arena is making them: this one says that it waits, and then finds them."""
    jobs, lines = Arena(plan(seeds=[0]), tmp_path / "out").jobs(), io.StringIO()
    data = tmp_path / "out" / "data" / "one"
    data.mkdir(parents=True)
    code = "import fcntl, sys; f = open('.lock', 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-S", "-c", code], cwd=data, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    other.stdout.readline()
    jobs[0].folder.mkdir(parents=True)  # its flow is there

    class Told:
        def print(self, words: str, **_: object) -> None:
            lines.write(words)
            other.stdin.write(b"\n")
            other.stdin.close()

    program.prepare(data, {}, jobs, True, Told())
    other.wait()
    assert lines.getvalue() == f"another process makes the data in {data}, waiting for it"


def test_what_another_arena_has_measured_since_is_not_measured_again(plan, tmp_path, monkeypatch):
    (job,) = [job for job in Arena(plan(seeds=[0]), tmp_path / "out").jobs() if job.row == "source_only"]
    job.folder.mkdir(parents=True)
    for name in ("config.yaml", "model.safetensors"):
        (job.folder / name).touch()
    lock = RunFolder.lock

    @contextlib.contextmanager
    def late(self):
        with lock(self):
            (self.path / "results.json").touch()
            yield

    monkeypatch.setattr(RunFolder, "lock", late)
    monkeypatch.setattr(type(job), "is_busy", lambda _: False)
    monkeypatch.setattr(program, "Popen", lambda *_, **__: pytest.fail("measured again"))
    runner = program.Runner([job], 1, program.Console(file=io.StringIO()), lambda: None)
    runner._start(job)
    assert not runner.running


def test_sub_processes_import_nothing_from_the_working_folder(plan, tmp_path, monkeypatch):
    """The very command that an arena starts, where files of the names of modules lie."""
    job = Arena(plan(), tmp_path / "out").jobs()[0]
    started = list[tuple[list[str], dict[str, Any]]]()
    monkeypatch.setattr(program, "Popen", lambda command, **more: started.append((command, more)))
    job.folder.parent.mkdir(parents=True)
    program.Child(job, "train", 0, 1, contextlib.ExitStack())
    (command, more), evil = started[0], tmp_path / "evil"
    evil.mkdir()
    for name in ("argparse", "yaml", "csv", "random", "runpy", "stcl"):
        (evil / f"{name}.py").write_text(f"open({str(evil / 'ran')!r}, 'a').write({name!r})")
    command = [*command[:-5], "--help"]  # not the words of the run
    done = subprocess.run(command, cwd=evil, env=more["env"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and "usage: stcl" in done.stdout
    assert not (evil / "ran").exists()


def test_a_folder_with_other_settings_is_refused_and_kept(plan, here, tmp_path, capsys):
    out = tmp_path / "out"
    job = Arena(plan(), out).jobs()[0]
    job.folder.mkdir(parents=True)
    (job.folder / "config.yaml").write_text(job.settings.dump().replace("steps: 2\n", "steps: 9\n"))
    assert run(plan(), out) == 2
    message = capsys.readouterr().err
    assert f"{job.folder} holds a run of other settings" in message and "(training.steps differ)" in message
    assert [file.name for file in job.folder.iterdir()] == ["config.yaml"] and not here
    # another title, or another place of the rendered data, is the same run
    (job.folder / "config.yaml").write_text(
        job.settings.dump().replace(str(out), "/elsewhere").replace("title: S", "title: P")
    )
    job.refuse_other()


STAND_IN = """
import json, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
run = pathlib.Path(sys.argv[-2])
if sys.argv[1] == "train":
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text((run.parent / f"{run.name}.yaml").read_text())
    (run / "started").touch()
    for _ in range(6000):  # seed 0 ends once both runs of it are there, seed 1 when it is told to
        if run.name == "seed-0" and len([*run.parents[1].glob("*/seed-0/started")]) == 2:
            break
        time.sleep(0.05)
    (run / "model.safetensors").touch()
else:
    (run / "results.json").touch()
"""


@pytest.fixture
def stand_in(monkeypatch):
    """Real sub-processes, of a program that trains by waiting and measures nothing."""

    def start(command: list[str], **more: Any) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", STAND_IN, *command[3:]], **more)

    monkeypatch.setattr(program, "Popen", start)


class Silent:
    miou = 50.0


def test_runs_side_by_side_and_a_signal_reaches_them(plan, stand_in, tmp_path, monkeypatch):
    """Both runs of seed 0 overlap and end; those of seed 1 are told to stop, and nothing is left behind."""
    monkeypatch.setattr(program, "read_result", lambda _: Silent)
    jobs = Arena(plan(), tmp_path / "out").jobs()
    lines = io.StringIO()
    runner = program.Runner(jobs, 2, program.Console(file=lines, width=200), lambda: None)
    write = runner._start
    children: list[program.Child] = []

    def started(job):
        write(job)
        children.append(runner.running[-1])
        if job is jobs[3] and job.missing() == "train":
            while not all((other.folder / "started").exists() for other in jobs[2:]):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runner, "_start", started)
    with pytest.raises(program.TrainingStopped, match="Stopped by SIGTERM: 2 runs are left") as caught:
        runner.run(quiet=True)
    assert caught.value.status == 75
    assert [job.missing() for job in jobs] == [None, None, "resume", "resume"]
    assert not any(job.is_busy() for job in jobs) and not runner.running
    assert all(child.process.returncode is not None for child in children)
    assert {child.slot for child in children} == {0, 1}
    assert "one, source_only, seed 0: mIoU 50.0" in lines.getvalue() and "failed" not in lines.getvalue()


def test_a_sub_process_has_its_share_of_the_machine(plan, tmp_path, monkeypatch):
    job = Arena(plan(), tmp_path).jobs()[0]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(program.os, "sched_getaffinity", lambda _: range(12), raising=False)
    assert [program.environment(job, 0, jobs)["OMP_NUM_THREADS"] for jobs in (1, 4, 99)] == ["12", "3", "1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert program.environment(job, 0, 4)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [program.environment(job, slot, 3)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["3", "5", "3"]
    assert program.environment(job, 0, 1)["CUDA_VISIBLE_DEVICES"] == "3,5"


# ---- the plan ----


def test_later_settings_win(plan, tmp_path):
    path = plan(
        settings={"training": {"steps": 3, "batch_size": 3, "log_every": 3, "checkpoint_every": 3}},
        pairs={"one": {"settings": {"training": {"batch_size": 4, "log_every": 4, "checkpoint_every": 4}}}},
        methods={"source_only": {"settings": {"training": {"log_every": 5, "checkpoint_every": 5}}}},
    )
    one, other = [job.settings for job in Arena(path, tmp_path).jobs()[:2]]
    assert (one.training.steps, one.training.batch_size, one.training.log_every) == (3, 4, 5)
    assert (other.training.log_every, other.title, other.name) == (4, "Faster, no colours", "faster-no-colours")
    assert (one.title, one.name) == ("Source only", "source_only")


def test_seeds_come_first_then_pairs_then_methods(plan, tmp_path):
    jobs = Arena(plan(pairs={"two": {"configs": "twinstreets"}}, methods={"oracle": {"seeds": [7]}}), tmp_path).jobs()
    names = [(job.seed, job.pair, job.row) for job in jobs]
    assert names[:3] == [(0, "one", "source_only"), (0, "one", "Faster, no colours"), (0, "two", "source_only")]
    assert names[-2:] == [(7, "one", "oracle"), (7, "two", "oracle")]
    assert len(names) == 10


def test_rendered_data_lie_in_the_arenas_folder(plan, tmp_path):
    real = {"configs": "twinstreets-camvid", "streets": {"source_only": True}, "settings": {"target": {"root": "cam"}}}
    arena = Arena(plan(seeds=[0], methods={"Faster, no colours": ..., "oracle": {}}, pairs={"real": real}), tmp_path)
    places = {
        (job.pair, job.row): [job.settings.source.root, job.settings.target.root, job.settings.flow.cache]
        for job in arena.jobs()
    }
    data = tmp_path / "data"
    assert places["one", "source_only"] == [str(data / "one" / part) for part in ("source", "target", "flow")]
    assert places["one", "oracle"] == [str(data / "one" / part) for part in ("target", "target", "flow")]
    assert places["real", "source_only"] == [str(data / "real" / "source"), "cam", str(data / "real" / "flow")]
    assert places["real", "oracle"][:2] == ["cam", "cam"]


def test_own_configurations_lie_beside_the_file_and_pairs_can_be_chosen(plan, here, tmp_path, streets, capsys):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "source_only.yaml").write_text("base: twinstreets/source_only\ntitle: Mine\n")
    places = {"source": {"root": str(streets / "source")}, "target": {"root": str(streets / "target")}}
    two = {"configs": "own", "settings": places | {"flow": {"cache": str(tmp_path / "flow")}}}
    path = plan(seeds=[0], methods={"Faster, no colours": ...}, pairs={"two": two})
    assert run(path, tmp_path / "out", "--only", "two") == 0
    assert len(here) == 2 and "two, source_only, seed 0: mIoU" in capsys.readouterr().err
    pairs = json.loads((tmp_path / "out" / "arena.json").read_text())["pairs"]
    assert [len(pair["rows"]["source_only"]["runs"]) for pair in pairs.values()] == [0, 1]
    assert pairs["two"]["rows"]["source_only"]["label"] == "Mine"
    assert len(list((tmp_path / "flow").rglob("*.npz"))) == 12  # source 2 x 2, target 2 x 3 + 2 x 1, computed before
    assert not (tmp_path / "out" / "data" / "one").exists()


def test_streets_are_those_of_the_documented_commands(monkeypatch):
    text = (config_folder().parent / "docs" / "data.md").read_text().replace("\\\n", " ")
    commands = [line.split()[1:] for line in text.splitlines() if line.startswith("stcl data render")][:3]
    shown: dict[str, list[Any]] = {}
    result = rendering.ExportResult(Path(), 0, 0.0)
    monkeypatch.setattr(
        rendering, "export", lambda out, request, *_: (shown.setdefault(out.name, []).append(request), result)[1]
    )
    assert [main(words) for words in commands] == [0, 0, 0]
    assert program.exports(program.Streets()) == shown
    assert list(program.exports(program.Streets(source_only=True))) == ["source"]


@pytest.mark.parametrize("name", list_arenas())
def test_shipped_arenas(name, tmp_path):
    arena = Arena(arena_path(name), tmp_path)
    known = list_configs()
    arena.rows = {r: row for r, row in arena.rows.items() if f"{next(iter(arena.pairs.values())).configs}/{r}" in known}
    assert len({job.folder for job in arena.jobs()}) == sum(len(arena.seeds[row]) for row in arena.rows) * len(
        arena.pairs
    )
    assert name not in known


STREETS = {"one": {"settings": {"source": {"root": "here"}}}}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"seeds": []}, r"plan\.yaml: seeds must list different seeds, at least one; found \[\]"),
        ({"seeds": [1, 1]}, r"seeds must list different seeds"),
        ({"seeds": ["a"]}, r'seeds must be a list in which each item is a whole number, found \["a"\]'),
        ({"seeds": [-1]}, r"seeds must be at least 0"),
        ({"seed": [0]}, r"plan\.yaml: Unknown key 'seed'\. Did you mean 'seeds'\?"),
        ({"name": ...}, r"the key name is missing"),
        ({"methods": ...}, r"methods is empty. Name at least one"),
        ({"reference": "stcl"}, r"Unknown reference 'stcl'\. Known: source_only, Faster, no colours"),
        ({"methods": {"Source_Only": {}}}, r"methods: 'source_only' and 'Source_Only' would share the folder"),
        ({"methods": {"!": {}}}, r"methods: '!' becomes a folder's name"),
        (
            {"methods": {"source_only": {"sedes": [0]}}},
            r"methods\.source_only: Unknown key 'sedes'. Did you mean 'seeds'",
        ),
        ({"methods": {"source_only": {"seeds": []}}}, r"methods\.source_only\.seeds must list different seeds"),
        ({"methods": {"source_only": 3}}, r"methods\.source_only: expected keys \(config, settings, seeds\), found 3"),
        ({"methods": {"sorce_only": {}}}, r"'sorce_only': there is no file .*Did you mean 'twinstreets/source_only'"),
        ({"pairs": {"one": {"streets": {"styleseed": 1}}}}, r"pairs\.one\.streets: Unknown key 'styleseed'"),
        (
            {"pairs": {"one": {"streets": {"size": [64]}}}},
            r"size must be \[a whole number, a whole number\], found \[64\]",
        ),
        ({"pairs": {"two": {}}}, r"pairs\.two: the key configs is missing"),
        ({"pairs": STREETS}, r"pairs\.one\.settings\.source\.root and pairs\.one\.streets both say where the source"),
        ({"settings": {"target": {"root": "x"}}}, r": settings\.target\.root and pairs\.one\.streets both say"),
        ({"settings": {"seed": 3}}, r"settings\.seed: an arena's seeds stand in its key 'seeds'"),
        ({"settings": {"trainig": {"steps": 3}}}, r"pair 'one', method 'source_only': Unknown key 'trainig'"),
    ],
)
def test_mistakes_in_the_file(plan, tmp_path, groups, message):
    with pytest.raises(SettingError, match=message):
        Arena(plan(**groups), tmp_path / "out").jobs()
    assert not (tmp_path / "out").exists()


def test_mistakes_on_the_command_line(plan, tmp_path, capsys):
    for words, message in {
        ("arena", "nowhere"): "Unknown arena 'nowhere'",
        ("arena", str(plan()), "--only", "ones"): "Unknown pair 'ones'. Did you mean 'one'?",
        ("arena", str(plan()), "--jobs", "0"): "--jobs counts the runs at a time: at least 1.",
        ("arena", str(plan(pairs={}, methods={"x": {}}))): "there is no file",
    }.items():
        assert main([*words, "--out", str(tmp_path / "out")]) == 2
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()
