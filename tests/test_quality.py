"""Style, formatting and types are part of the suite."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "arguments",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["style", "formatting", "types"],
)
def test_clean(arguments):
    command = [sys.executable, "-m", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    hint = "`make format` mends much of this; `make lint` shows the rest."
    assert result.returncode == 0, f"{' '.join(arguments)}\n{result.stdout}{result.stderr}\n{hint}"
