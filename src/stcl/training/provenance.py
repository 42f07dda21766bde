"""What a result depends on beside its settings: code, versions, machine, data."""

import hashlib
import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from stcl import __version__
from stcl.data import ClipDataset
from stcl.files.paths import real_path
from stcl.files.places import shown_word

PACKAGES = ("torch", "lightning", "numpy", "opencv-python-headless", "kornia", "safetensors")
"""Whose versions can change a result."""


def describe_run(clips: dict[str, ClipDataset]) -> dict[str, Any]:
    """Everything that ``run.json`` holds."""
    packages = dict.fromkeys(PACKAGES, "not installed")
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    place = {"platform": platform.platform(), "host": platform.node(), "packages": packages}
    return {
        "command": [Path(sys.argv[0]).name, *map(shown_word, sys.argv[1:])],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": describe_code(),
        "environment": {**describe_environment("cuda" if torch.cuda.is_available() else "cpu"), **place},
        "data": {name: describe_clips(dataset) for name, dataset in clips.items()},
    }


def describe_code() -> dict[str, str]:
    """Version of this package and its git revision, with ``+`` where it was changed since, or ``release``."""
    command, revision = ["git", "describe", "--always", "--dirty=+"], "release"
    with suppress(OSError, subprocess.SubprocessError):  # no checkout
        answer = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        )
        revision = answer.stdout.strip()
    return {"version": __version__, "revision": revision}


def describe_environment(device: str) -> dict[str, Any]:
    """Interpreter, torch and hardware."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def describe_change(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What may keep a run that goes on elsewhere from the bits of an uninterrupted one, in words."""
    changed = [key for key in ("device", "torch", "threads") if key in before and before[key] != now[key]]
    if not changed:
        return []
    words = ", ".join(f"{key} {now[key]} instead of {before[key]}" for key in changed)
    return [f"This run goes on with {words}: the same steps, but the last bits of the result may be others."]


def describe_clips(clips: ClipDataset) -> dict[str, Any]:
    """Identity of the data: counts, digests of names and sizes of all files that may be opened, and of the frames t."""
    root, digest = clips.dataset.root, hashlib.blake2b(digest_size=16)
    frames = [ref for run in clips.runs for ref in run]
    for ref in frames:
        for path in (ref.image, ref.label if clips.spec.labels else None):
            if path is not None:
                digest.update(os.fsencode(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n"))
    chosen = "\n".join(clips.runs[run][position].name for run, position in clips.anchors)
    return {
        "name": clips.dataset.name,
        "root": str(real_path(root)),
        "split": clips.dataset.split,
        "frames": len(frames),
        "labelled": sum(ref.label is not None for ref in frames) if clips.spec.labels else None,
        "clips": len(clips),
        "digest": digest.hexdigest(),
        "chosen": hashlib.blake2b(os.fsencode(chosen), digest_size=16).hexdigest(),
    }
