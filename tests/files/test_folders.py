"""Folders that commands write into: one process at a time, and nothing of anybody else's is lost."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stcl.errors import BusyError, SettingError
from stcl.files import folders
from stcl.files.folders import OwnFiles, hold_lock, new_folder, refuse_others, remove_listed

fcntl = pytest.importorskip("fcntl")

HOLD = (
    "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(flush=True); "
    "sys.stdin.read()"
)


def another_process(path: Path) -> subprocess.Popen:
    """Holds the lock of a file until its input ends."""
    command = [sys.executable, "-S", "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


# ---- locks ----


def test_of_two_processes_one_is_told(tmp_path):
    lock = tmp_path / ".lock"
    with another_process(lock) as other:
        with pytest.raises(BusyError, match="taken"), hold_lock(lock, "taken"):
            pass
        other.stdin.close()
    with hold_lock(lock, "taken"):
        pass
    assert not [*tmp_path.iterdir()]


def test_of_two_threads_of_one_process_one_is_told_and_the_other_keeps_the_lock(tmp_path):
    lock = tmp_path / ".lock"
    with hold_lock(lock, "taken"):
        for path in (lock, tmp_path / "." / ".lock"):
            with pytest.raises(BusyError, match="taken"), hold_lock(path, "taken"):
                pass
        asked = subprocess.run(
            [sys.executable, "-S", "-c", HOLD.replace("LOCK_EX", "LOCK_EX | fcntl.LOCK_NB"), str(lock)],
            capture_output=True,
            text=True,
            check=False,
            input="",
        )
        assert "BlockingIOError" in asked.stderr


def test_a_lock_that_its_holder_has_removed_is_nobodys(tmp_path, monkeypatch):
    """Between opening and locking, the holder leaves and a third one comes: two would hold locks of one name."""
    lock, third = tmp_path / ".lock", list[subprocess.Popen]()
    take = fcntl.lockf

    def slowly(file, how):
        if not third:
            lock.unlink()  # as the first one does in the end
            third.append(another_process(lock))
        return take(file, how)

    monkeypatch.setattr(fcntl, "lockf", slowly)
    with pytest.raises(BusyError, match="taken"), hold_lock(lock, "taken"):
        pass
    assert lock.exists()
    third[0].communicate()
    with hold_lock(lock, "taken"):
        assert lock.exists()


def test_who_waits_gets_the_lock_that_counts(tmp_path):
    """The one that was waited for removes its file; the waiting one must not hold that."""
    lock, order = tmp_path / ".lock", list[str]()
    other = another_process(lock)

    def wait() -> None:
        order.append("waiting")
        lock.unlink()
        threading.Timer(0.05, other.stdin.close).start()

    with hold_lock(lock, "taken", wait):
        order.append("held")
        assert lock.exists()
        with pytest.raises(BusyError), hold_lock(lock, "taken"):
            pass
    other.wait()
    assert order == ["waiting", "held"]


def test_a_lock_ends_with_an_error_and_leaves_no_folder(tmp_path):
    lock = tmp_path / "new" / "deep" / ".lock"
    with pytest.raises(KeyboardInterrupt), hold_lock(lock, "taken"):
        raise KeyboardInterrupt
    assert not [*tmp_path.iterdir()]
    with hold_lock(lock, "taken"):
        (lock.parent / "work").touch()
    assert [path.name for path in lock.parent.iterdir()] == ["work"]


def test_a_users_file_of_the_locks_name_stays(tmp_path):
    (tmp_path / ".lock").write_text("mine")
    with hold_lock(tmp_path / ".lock", "taken"):
        pass
    assert tree(tmp_path) == {".lock": "mine"}


def test_file_systems_without_locks(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(folders.errno.ENOLCK, "No locks")))
    with hold_lock(tmp_path / ".lock", "taken"):
        pass


# ---- new folders ----


def test_a_new_folder_replaces_nothing(tmp_path):
    out = tmp_path / "deep" / "out"

    def fill(text: str, **more) -> None:
        with new_folder(out, **more) as place:
            (place / "file").write_text(text)

    fill("one")
    with pytest.raises(SettingError, match="is there already and stays as it is"):
        fill("two")

    def refuse() -> None:
        raise SettingError("no")

    with pytest.raises(SettingError, match="no"):
        fill("two", may_replace=refuse)
    assert tree(tmp_path) == {"deep/out/file": "one"}
    fill("three", may_replace=lambda: None)
    assert tree(tmp_path) == {"deep/out/file": "three"}
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_what_came_meanwhile_is_not_replaced(tmp_path):
    def fill() -> None:
        with new_folder(tmp_path / "out") as place:
            (place / "file").write_text("second")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "file").write_text("first")

    with pytest.raises(SettingError, match="stays as it is"):
        fill()
    assert tree(tmp_path) == {"out/file": "first"}


def test_a_linked_folder_is_filled_where_it_leads(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with new_folder(tmp_path / "link") as place:
        (place / "file").write_text("one")
    assert (tmp_path / "link").is_symlink() and tree(tmp_path / "real") == {"file": "one"}


# ---- whose files they are ----


@pytest.fixture
def own(tmp_path) -> OwnFiles:
    return OwnFiles(tmp_path / "out", "record.json", "stcl verb")


def test_only_what_the_record_lists_is_removed(own):
    with own.alone():
        own.begin(["a.txt", "pictures/1.png"])
        for name in ("a.txt", "pictures/1.png"):
            (own.folder / name).parent.mkdir(exist_ok=True)
            (own.folder / name).write_text("ours")
    (own.folder / "notes.txt").write_text("mine")
    (own.folder / "pictures" / "2.png").write_text("mine")
    (own.folder / "pictures" / ".1.png.4711.0123abcd.tmp").write_text("left by a kill")
    with own.alone():
        own.begin(["b.txt"])
        assert tree(own.folder) == {
            "notes.txt": "mine",
            "pictures/2.png": "mine",
            "record.json": json.dumps({"files": ["a.txt", "pictures/1.png", "b.txt"]}),
            f".{own.record}.lock": "",
        }


@pytest.mark.parametrize("record", ["[]", '{"mine": 1}', "{", '{"files": "a.txt"}'])
def test_a_record_of_somebody_elses_is_refused(own, record):
    own.folder.mkdir()
    (own.folder / "record.json").write_text(record)
    with pytest.raises(SettingError, match=r"record.json was not written by 'stcl verb'.*--out"), own.alone():
        pass
    assert tree(own.folder) == {"record.json": record}


def test_files_that_would_be_written_over_are_refused_before(own):
    own.folder.mkdir()
    (own.folder / "a.txt").write_text("mine")
    with pytest.raises(SettingError, match=r"holds something else than the work of .*: a\.txt"), own.alone():
        pass
    with (
        own.alone(others=True),
        pytest.raises(SettingError, match=r"a\.txt is there and was not written by 'stcl"),
    ):
        own.begin(["b.txt", "a.txt"])
    (own.folder / "link").symlink_to("nowhere")
    with pytest.raises(SettingError, match="link is there"):
        refuse_others(own.folder, ["link"], (), "stcl verb")
    assert tree(own.folder) == {"a.txt": "mine"}


def test_records_of_earlier_versions_list_nothing_but_are_whole(own):
    own.folder.mkdir()
    (own.folder / "record.json").write_text('{"schema": 1}')
    (own.folder / "a.txt").write_text("ours")
    with own.alone():
        own.begin(["a.txt"])
    assert not (own.folder / "a.txt").exists()


def test_no_list_leads_out_of_the_folder(tmp_path):
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("mine")
    (tmp_path / "a").write_text("mine")
    (out / "linked").symlink_to(tmp_path / "data")
    (out / "to a").symlink_to(tmp_path / "a")
    names = [
        "../a",
        "../data/a",
        str(tmp_path / "a"),
        "linked/a",
        "deep/../../a",
        "",
        ".",
        "..",
        "deep",
        "linked",
        "to a",
    ]
    remove_listed(out, names)
    assert (tmp_path / "a").read_text() == (tmp_path / "data" / "a").read_text() == "mine"
    assert sorted(path.name for path in out.iterdir()) == ["deep"]  # the links are gone, not what they lead to
