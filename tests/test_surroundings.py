"""The command in odd surroundings: standard streams that are closed, full or left by their readers, odd variables."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stcl.cli import main
from stcl.errors import SettingError
from stcl.surroundings import LAUNCHED, LastingStream, check_surroundings

RENDER = ["--layout", "viper", "--style", "clean", "--clips", "1", "--frames", "1", "--size", "32", "32", "--quiet"]


def test_work_goes_on_when_nobody_reads(tmp_path, monkeypatch):
    """Every line is written at once, as to a terminal that is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stream:
        for name in ("stdout", "__stdout__"):
            monkeypatch.setattr(sys, name, stream)
        for name in ("one", "two"):
            assert main(["data", "render", "--out", str(tmp_path / name), *RENDER, "--workers", "1"]) == 0
            assert (tmp_path / name / "twinstreets_train.json").is_file()
        assert LastingStream(stream).problem is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
def test_what_could_not_be_written_is_known():
    with open("/dev/full", "w") as file:  # noqa: PTH123  no path
        stream = LastingStream(file)
        stream.write("a" * 100_000)
        stream.flush()
        assert stream.problem.errno == errno.ENOSPC
        stream.write("b" * 100_000)  # to nobody


@pytest.mark.parametrize(
    ("redirections", "status", "told"),
    [
        (">&- 2>&- <&-", 0, ""),
        (">/dev/full", 2, "stcl: error: what was to be shown could not be written (No space left on device).\n"),
    ],
)
def test_standard_streams_that_are_closed_or_full(tmp_path, redirections, status, told):
    """And a folder whose name is no text, shown in an alphabet that has few letters."""
    folder = os.fsencode(tmp_path) + b"/str\xe4\xdfe"
    command = [sys.executable, "-m", "stcl.cli", "data", "render", "--out", folder, *RENDER, "--workers", "1"]
    own = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C"}
    shell = ["sh", "-c", f'exec "$@" {redirections}', "sh", *command]
    result = subprocess.run(shell, capture_output=True, text=True, timeout=120, check=False, env=own)
    assert (result.returncode, result.stdout, result.stderr) == (status, "", told)
    names = {os.path.join(place, name) for place, _, names in os.walk(folder) for name in names}  # noqa: PTH118  bytes
    pictures = {folder + b"/train/img/000/000_00000.jpg", folder + b"/train/cls/000/000_00000.png"}
    assert names == pictures | {folder + b"/twinstreets_train.json"}
    assert all(Path(os.fsdecode(name)).read_bytes().startswith((b"\xff\xd8", b"\x89PNG")) for name in pictures)


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    """Libraries write their warnings into number 2, whatever that is."""
    code = "import sys; from stcl.surroundings import ready_streams as ready; ready(); file = open(sys.argv[1], 'w');"
    command = [sys.executable, "-c", f"{code} print('said'); print(file.fileno(), file=file)", str(tmp_path / "number")]
    subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh", *command], timeout=120, check=True)
    assert int((tmp_path / "number").read_text()) > 2


def test_names_are_shown_in_any_alphabet(tmp_path, capsys):
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "\udce4\n\x1b[31m\u202e")]) == 2
    told = capsys.readouterr().err
    assert "\\udce4\\n\\x1b[31m\\u202e is no run folder" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "abc"}, "The environment variable RANK is 'abc', but must be a whole number from 0 to 65536"),
        ({"SLURM_PROCID": ""}, "variable SLURM_PROCID is ''"),
        ({"LOCAL_RANK": "-1"}, "variable LOCAL_RANK is '-1'"),
        ({"WORLD_SIZE": "0"}, "variable WORLD_SIZE is '0', but must be a whole number from 1"),
        ({"WORLD_SIZE": "9" * 5000}, "variable WORLD_SIZE is '999"),
        ({"RANK": "3"}, "says RANK 3, but WORLD_SIZE 1"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "says RANK 2, but WORLD_SIZE 2"),
        ({"LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "says LOCAL_WORLD_SIZE 4, but WORLD_SIZE 2"),
        ({"LOCAL_WORLD_SIZE": "2"}, "says LOCAL_WORLD_SIZE, but no LOCAL_RANK"),
    ],
)
def test_numbers_of_launchers_that_are_none(monkeypatch, variables, message):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    check_surroundings()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match=message):
        check_surroundings()


def test_what_launchers_say(monkeypatch):
    """torchrun, Lightning's own processes, and an interactive shell of SLURM."""
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1"}
    lightning = {"NODE_RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "12910"}
    for variables in (torchrun, lightning, {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}):
        for name in LAUNCHED:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        check_surroundings()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no folder that is somebody's")
def test_a_working_folder_that_was_removed(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told == "stcl: error: The working folder was removed. Change to one that is there: cd DIR.\n"
