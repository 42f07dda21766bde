"""Folders that commands write into: one process at a time, and nothing in them is lost that a command did not write.

Whoever writes takes the lock first and looks at what is there then: what was seen before may have changed meanwhile.
"""

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from stcl.errors import BusyError, SettingError
from stcl.files.names import neighbour, neighbour_of
from stcl.files.paths import real_path
from stcl.files.plain import read_json
from stcl.files.writing import write_atomic

_held: dict[str, int] = {}
"""Locks by the process that holds them: such a lock keeps out other processes only, and a fork does not inherit it."""

_guard = threading.Lock()


@contextmanager
def hold_lock(path: Path, busy: str, wait: Callable[[], object] | None = None) -> Iterator[None]:
    """Held while a process writes into a folder; ends with the process, however that ends.

    Args:
        path: the lock's file; its folder is made, and removed again if it is empty in the end.
        busy: message of the error that everybody else gets meanwhile.
        wait: called before waiting for the other process; None: do not wait.

    Raises:
        BusyError: another process holds it, or this one does already.
    """
    made = _make_folders(path.parent)
    try:
        key = os.path.realpath(path)
        with _guard:
            if _held.get(key) == os.getpid():
                raise BusyError(busy)
            _held[key] = os.getpid()
        try:
            with _locked(path, busy, wait):
                yield
        finally:
            with _guard:
                del _held[key]
    finally:
        for folder in made:
            with suppress(OSError):  # it holds something
                folder.rmdir()


@contextmanager
def _locked(path: Path, busy: str, wait: Callable[[], object] | None) -> Iterator[None]:
    """The system's lock on a file, which is gone afterwards."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return

    def take(file: TextIO) -> bool:
        """Whether this is the lock's file still, now that it is locked: its last holder may have removed it."""
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: loader processes would inherit that
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return True  # a file system without locks
            if wait is None:
                raise BusyError(busy) from None
            wait()
            fcntl.lockf(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file.fileno()), path.stat())
        return False

    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:  # never cut: it could be a file of the user's
            if take(file):
                try:
                    yield
                finally:
                    if not os.fstat(file.fileno()).st_size:
                        path.unlink(missing_ok=True)  # before the lock is given up, or it would be the next one's
                return


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder; returns what was made, the deepest first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


@contextmanager
def new_folder(path: Path, may_replace: Callable[[], None] | None = None) -> Iterator[Path]:
    """Make a folder so that other processes see all of it or none: yields one to fill, which gets its name at the end.

    Folders above it are made at the end.

    Args:
        path: the folder. Nothing of it is touched if the block fails.
        may_replace: looks at what lies there when the new folder is whole, and raises if that has to stay; None: only
            an empty folder is replaced.

    Raises:
        SettingError: something lies there that is not to be replaced.
    """
    path = real_path(path)
    above = next(folder for folder in path.parents if folder.exists())  # on the same disk, and not to be cleared away
    temporary, before = neighbour(above / path.name, ".tmp"), neighbour(above / path.name, ".old")
    temporary.mkdir()
    try:
        yield temporary
        path.parent.mkdir(parents=True, exist_ok=True)
        if may_replace is not None:
            may_replace()
        elif os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
            raise SettingError(f"{path} is there already and stays as it is. Move it away, or choose another place.")
        if path.exists():
            path.rename(before)
        try:
            temporary.rename(path)
        except OSError:
            if before.exists():
                before.rename(path)
            raise
        if before.exists():
            shutil.rmtree(before)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class OwnFiles:
    """The files of a folder that a command has written, as its own record says; nothing else is replaced or removed.

    Args:
        folder: where they lie.
        record: name of a JSON file in there, whose key ``files`` lists them by their paths below the folder.
        verb: the command, for messages.
    """

    def __init__(self, folder: Path, record: str, verb: str) -> None:
        self.folder, self.record, self.verb = folder, record, verb

    @contextmanager
    def alone(self, others: bool = False) -> Iterator[None]:
        """Held by one process while it writes into the folder, which is a new one, an empty one or the command's own.

        Args:
            others: files that no record lists may lie in it, too.
        """
        lock = f".{self.record}.lock"
        if self.folder.exists() and not self.folder.is_dir():
            raise SettingError(f"Cannot write into {self.folder} (a file is there). Choose another folder with --out.")
        busy = f"Another '{self.verb}' is writing into {self.folder} right now. Wait for it, or choose another --out."
        with hold_lock(self.folder / lock, busy):
            foreign = next((path for path in self.folder.iterdir() if path.name != lock), None)
            if self.read() is None and foreign is not None and not others:
                raise SettingError(
                    f"{self.folder} holds something else than the work of '{self.verb}': {foreign.name}. Choose a new "
                    "or empty folder with --out."
                )
            yield

    def read(self) -> dict[str, Any] | None:
        """The record, or None where there is none; somebody else's file of that name is refused."""
        path = self.folder / self.record
        if not os.path.lexists(path):
            return None
        try:
            content = read_json(path)
        except (OSError, ValueError):
            content = None
        known = isinstance(content, dict) and bool(content.keys() & {"schema", "files"})
        if not known or not isinstance(content.get("files", []), list):
            raise SettingError(f"{path} was not written by '{self.verb}': it stays as it is. {_ELSEWHERE}")
        return content

    def check(self, names: Sequence[str], earlier: bool = False) -> list[str]:
        """Refuse to write files where somebody else's lie; returns those of earlier calls.

        Args:
            names: of files, by their paths below the folder.
            earlier: files of these names are the command's own where no record lists any: it once kept no lists.
        """
        record = self.read()
        listed: list[str] = (record or {}).get("files", names if earlier or record else [])
        refuse_others(self.folder, names, listed, self.verb)
        return listed

    def begin(self, names: Sequence[str], earlier: bool = False) -> None:
        """List ``names`` before they are written; what an earlier call of the command has left is removed.

        Args, and what is refused: :meth:`check`.
        """
        listed = self.check(names, earlier)
        if names:
            write_atomic(self.folder / self.record, json.dumps({"files": [*dict.fromkeys((*listed, *names))]}).encode())
        remove_listed(self.folder, listed if names else [*listed, self.record])


_ELSEWHERE = "Choose another folder with --out, or move it away."


def refuse_others(folder: Path, names: Iterable[str], listed: Collection[str], verb: str) -> None:
    """Files that are about to be written must not be there yet, unless they are ``listed`` as the command's own."""
    for name in names:
        if name not in listed and os.path.lexists(folder / name):
            raise SettingError(
                f"{folder / name} is there and was not written by '{verb}': it stays as it is. {_ELSEWHERE}"
            )


def remove_listed(folder: Path, names: Iterable[str]) -> None:
    """Remove files by their paths below a folder, and folders that are empty then; what lies elsewhere stays.

    With a file goes what a writer of it left that was killed.
    """
    root, listed = real_path(folder), {folder / str(name) for name in names}
    places = {path.parent for path in listed}
    inside = {place for place in places if place.is_dir() and real_path(place).is_relative_to(root)}
    for place in sorted(inside, key=lambda place: -len(place.parts)):
        for path in [*place.iterdir()]:
            whole = neighbour_of(path.name) or path.name
            if place / whole in listed and (path.is_symlink() or not path.is_dir()):
                path.unlink(missing_ok=True)
        if place != folder:
            with suppress(OSError):  # something else lies in it
                place.rmdir()


def remove_abandoned(folder: Path, older_than_s: float = 0.0) -> None:
    """Remove the unfinished files in a folder that killed processes have left.

    Args:
        folder: need not exist.
        older_than_s: seconds since the last change, where other processes may be writing.
    """
    if folder.is_dir():
        for path in folder.iterdir():
            if neighbour_of(path.name) and path.is_file():
                with suppress(FileNotFoundError):  # just finished
                    if time.time() - path.stat().st_mtime >= older_than_s:
                        path.unlink()
