"""The folder of one video's prediction: what an earlier call says of itself there, and which files are its own.

``prediction.json`` says what was asked for, how far it came, and lists the files. While a prediction is under way,
``.parts`` holds its finished parts, and a journal of the pictures that were written since.
"""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from stcl.errors import DataError, SettingError
from stcl.files.folders import refuse_others, remove_listed
from stcl.files.names import neighbour_of
from stcl.files.plain import read_json
from stcl.files.writing import write_atomic

RECORD = "prediction.json"
PARTS = ".parts"
LARGEST_BYTES = 2**30
"""Of the record, which names every file, and of a part's rows, whose number is the user's choice."""

JOURNAL = "written"
LOCK = ".lock"
VERB = "stcl predict"

_PART = re.compile(rf"\.?\d{{8}}\..*|{JOURNAL}")  # a part, or what was to become one


class PredictionFolder:
    """What lies in a prediction's folder.

    Attributes:
        parts: folder of the finished parts.
        own: files that predictions have written, by their paths below the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.parts = path, path / PARTS
        self.own: set[str] = set()

    def read_record(self, force: bool) -> dict[str, Any] | None:
        """What an earlier call says of itself; None in a new or empty folder.

        Args:
            force: a damaged record may go, where nothing lies beside it.

        Raises:
            SettingError: the folder holds something else.
            DataError: the record is damaged.
        """
        path, self.own = self.path / RECORD, set()
        others = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
        others = [name for name in others if not self._is_left_by_a_kill(name)]
        if not path.is_file():
            if others:
                raise SettingError(
                    f"{self.path} is not empty and holds no prediction: it stays as it is. Choose another folder with "
                    "--out."
                )
            return None
        try:
            record = read_json(path, LARGEST_BYTES)
            if not isinstance(record, dict) or "state" not in record or not isinstance(record.get("request"), dict):
                raise ValueError("it does not say what was asked for")
        except ValueError as error:
            if force and not others:
                return None
            advice = "Choose another folder with --out" if others else "Begin anew with --force"
            raise DataError(
                f"{path} is damaged ({error}), so that nobody knows what was asked for and which files are its own. "
                f"{advice}."
            ) from None
        files = record.get("files")
        self.own = {*map(str, files if isinstance(files, list) else ()), *self._noted()}
        return record

    def write_record(self, record: dict[str, Any]) -> None:
        """Write the record, with all files that are the prediction's own."""
        write_atomic(self.path / RECORD, json.dumps({**record, "files": sorted(self.own)}, indent=1).encode())

    def read_parts(self) -> list[dict[str, Any]]:
        """The finished parts, in order."""
        try:
            parts = [read_json(path, LARGEST_BYTES) for path in sorted(self.parts.glob("*.json"))]
            if not all(isinstance(part, dict) and isinstance(part.get("rows"), list) for part in parts):
                raise ValueError("one lists no frames")
            return parts
        except ValueError as error:
            raise DataError(f"The parts in {self.parts} are damaged ({error}). Begin anew with --force.") from None

    def claim(self, *names: str) -> None:
        """Say that files are the prediction's own, before they are written; refuse them where somebody else's lie."""
        refuse_others(self.path, names, self.own, VERB)
        self.own |= {*names}

    def claim_picture(self, name: str) -> Path:
        """The same for one of many, which the journal keeps; returns where it goes."""
        if name not in self.own:
            self.claim(name)
            with (self.parts / JOURNAL).open("a", encoding="utf-8") as journal:
                journal.write(f"{json.dumps(name)}\n")
        return self.path / name

    def clear(self) -> None:
        """Remove what predictions have written, and nothing else."""
        remove_listed(self.path, [*self.own, RECORD])
        self.remove_parts()
        self.own = set()

    def remove_parts(self) -> None:
        """Remove the parts and the journal."""
        names = [path.name for path in self.parts.iterdir()] if self.parts.is_dir() else []
        remove_listed(self.path, [f"{PARTS}/{name}" for name in names if _PART.fullmatch(name)])
        with suppress(OSError):
            self.parts.rmdir()

    def _is_left_by_a_kill(self, name: str) -> bool:
        """What a call leaves that was killed at once, and the record."""
        if name == PARTS:
            return not any(self.parts.iterdir())
        return name in (LOCK, RECORD) or neighbour_of(name) == RECORD

    def _noted(self) -> list[str]:
        """What the journal says; half a line is no file's name."""
        journal, noted = self.parts / JOURNAL, list[str]()
        for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else ():
            with suppress(ValueError):
                noted.append(str(json.loads(line)))
        return noted
