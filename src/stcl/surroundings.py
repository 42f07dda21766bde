"""What the command finds around it: standard streams, a working folder, what launchers say in the environment."""

import os
import sys
from pathlib import Path
from typing import Any, TextIO

from stcl.errors import SettingError

_RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
_COUNTS = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")
LAUNCHED = {**dict.fromkeys(_RANKS, 0), **dict.fromkeys(_COUNTS, 1), "SLURM_STEP_NUM_NODES": 1}
"""Variables by which torchrun and SLURM tell a process its place, with their smallest values."""

MOST = 2**16
"""Of any of them."""


def ready_streams() -> None:
    """Make the standard streams fit for whatever is to be said, and for readers that leave."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # closed: a file that is opened later would take its number, and libraries write into it
            os.open(os.devnull, os.O_RDWR)
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "r" if name == "stdin" else "w", closefd=False)  # noqa: SIM115  it stays
            setattr(sys, name, stream)
        if name == "stdin":
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text, nor of this alphabet
        if stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, LastingStream(stream))


class LastingStream:
    """A stream behind whose end the work goes on: ``stcl predict a.mp4 b.mp4 | head -1`` does both.

    What nobody reads any more is dropped. ``problem`` keeps why else it could not be written, such as a full disk.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.problem: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or drop it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or drop what is left."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self.problem = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def stream_problem() -> OSError | None:
    """Why the standard output lacks something of what was said; None where it has all or nobody reads it."""
    sys.stdout.flush()
    return getattr(sys.stdout, "problem", None)


def check_surroundings() -> None:
    """Refuse what would end in a message of another program: no working folder, numbers of launchers that are none."""
    try:
        Path.cwd()
    except OSError:
        raise SettingError("The working folder was removed. Change to one that is there: cd DIR.") from None
    numbers = {name: _number(name, least) for name, least in LAUNCHED.items() if name in os.environ}
    if "LOCAL_WORLD_SIZE" in numbers and "LOCAL_RANK" not in numbers:
        raise SettingError(
            "The environment says LOCAL_WORLD_SIZE, but no LOCAL_RANK. Start with torchrun, or unset it."
        )
    for part in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        processes = numbers.get("WORLD_SIZE", 1)
        if numbers.get(part, 0) >= processes + (part == "LOCAL_WORLD_SIZE"):
            raise SettingError(
                f"The environment says {part} {numbers[part]}, but WORLD_SIZE {processes}. Start all processes with "
                "torchrun, or unset these."
            )


def _number(name: str, least: int) -> int:
    text = os.environ[name]
    if not (text.isdecimal() and len(text) <= 9 and least <= int(text) <= MOST):
        raise SettingError(
            f"The environment variable {name} is '{text}', but must be a whole number from {least} to {MOST}. "
            "Launchers such as torchrun and SLURM set it: unset it where none is at work."
        )
    return int(text)
