"""Tiny streets in the real layouts and tiny settings: training and evaluation in a fraction of a second."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from stcl.training.checking import check_settings
from stcl.training.config import merge
from stcl.training.settings import Settings
from stcl.training.train import train
from stcl.twinstreets.export import ExportRequest, export

SIZE = (64, 32)
MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="session")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``source/`` in SYNTHIA-Seq's layout; ``target/`` in Cityscapes-Seq's: train, val, and test with all labels."""
    root = tmp_path_factory.mktemp("streets")
    city = {"layout": "cityscapes-seq", "style": "camera", "seed": 1, "clips": 2, "size": SIZE}
    source = ExportRequest("synthia-seq", "clean", clips=2, frames=3, size=SIZE)
    export(root / "source", source, progress=False)
    export(root / "target", ExportRequest(**city, frames=4), progress=False)
    export(root / "target", ExportRequest(**city, frames=2, split="val"), progress=False)
    export(root / "target", ExportRequest(**city, frames=3, split="test", label_every=1), progress=False)
    return root


@pytest.fixture(scope="session")
def plain(streets: Path) -> dict[str, Any]:
    """A whole configuration as plain data."""
    return {
        "name": "tiny",
        "space": "synthia_seq-cityscapes_seq",
        "source": {"name": "synthia_seq", "root": str(streets / "source"), "size": list(SIZE)},
        "target": {"name": "cityscapes_seq", "root": str(streets / "target"), "size": list(SIZE)},
        "network": {"backbone": "small", "backbone_settings": {"width": 8}},
        "training": {"steps": 2, "batch_size": 2, "workers": 0, "accelerator": "cpu"},
        "method": {"name": "stcl"},
    }


@pytest.fixture(scope="session")
def make_settings(plain: dict[str, Any]) -> MakeSettings:
    """``make_settings(kind="stcl", **groups)``: the tiny settings of a method with groups laid over them."""

    def make(kind: str = "stcl", **groups: Any) -> Settings:
        return check_settings(merge(merge(plain, {"method": {"name": kind}}), groups), "tiny")

    return make


@pytest.fixture(scope="session")
def locked_elsewhere() -> Callable[[Path], AbstractContextManager[None]]:
    """``with locked_elsewhere(file):`` another process holds this lock."""
    pytest.importorskip("fcntl", reason="no such locks on this system")

    @contextmanager
    def elsewhere(lock: Path) -> Iterator[None]:
        hold = "f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", f"import fcntl, sys; {hold}", str(lock)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()  # now it does
            yield

    return elsewhere


@pytest.fixture(scope="session")
def trained(make_settings: MakeSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that tests read but do not change."""
    return train(make_settings("source_only"), tmp_path_factory.mktemp("runs") / "trained", quiet=True)
