"""``stcl demo``: the whole job on the built-in benchmark, from rendering to a page, in minutes on two cores.

The configurations are ``configs/demo``: the benchmark's own (``configs/twinstreets``), smaller and shorter.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import cpu_count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from stcl.commands.demo.film import write_panes
from stcl.commands.report.page import write_report
from stcl.errors import SettingError
from stcl.files.folders import hold_lock
from stcl.files.plain import read_json
from stcl.files.writing import write_atomic
from stcl.flow import precompute
from stcl.pages.tables import compare, rich_table
from stcl.resources import config_path
from stcl.terminal import plain_console
from stcl.training.checking import check_settings
from stcl.training.config import merge, read_yaml
from stcl.training.domains import evaluation_clips, training_clips
from stcl.training.evaluate import evaluate
from stcl.training.run_folder import RunFolder
from stcl.training.settings import Settings
from stcl.training.train import resume, train
from stcl.twinstreets.export import ExportRequest, export
from stcl.types import ClipSpec

METHODS = ("source_only", "strong_source_only", "stcl")
SIZE = (192, 96)
VIDEO_FRAMES = 41
EXPORTS = {
    "source": ExportRequest("synthia-seq", "clean", seed=0, split="train", clips=200, frames=3, size=SIZE),
    "target": ExportRequest("cityscapes-seq", "camera", seed=1, split="train", clips=200, frames=4, size=SIZE),
    "unseen": ExportRequest("cityscapes-seq", "camera", seed=1, split="val", clips=100, frames=2, size=SIZE),
    "video": ExportRequest(
        "cityscapes-seq", "camera", seed=1, split="test", clips=3, frames=VIDEO_FRAMES, size=SIZE, label_every=1
    ),
}
"""What the demo renders: source streets, and target streets to adapt to, to measure on, and to film."""
FOLDERS = {"source": "source", "target": "target", "unseen": "target", "video": "target"}

SUMMARY, BEGUN, LOCK = "summary.json", ".demo.json", ".demo.lock"
"""What a demo leaves when it is finished; until then, what says that the folder is a demo's, and of which seed."""

ABOUT = """A network that has only seen synthetic video is asked to label every pixel of a camera's video. Three
networks start from the same weights and train for the same number of steps: one on the synthetic video as it is, one
on synthetic video with strong augmentation and the camera's normalisation statistics, and one with STCL, which also
learns from the camera's unlabelled video. All are measured on streets that none of them has seen."""


def run_demo(out: Path, seed: int = 0) -> dict[str, Any]:
    """Render, compute flow, train, evaluate, write the page and the film.

    Args:
        out: a new or empty folder for everything, or that of a demo of the same seed: one that is finished is left as
            it is, one that was interrupted goes on.
        seed: of the training runs.

    Returns:
        What ``out/summary.json`` holds: ``{method: {"miou": percent}, "seconds": {...}, "seed": seed}``.
    """
    console = plain_console(stderr=True)
    busy = f"Another demo is at work in {out} right now. Wait for it, or choose another --out."
    with hold_lock(out / LOCK, busy):
        if not (out / SUMMARY).exists():
            _begin(out, seed)
            summary = _work(out, seed, console)
            (out / BEGUN).unlink()
            return summary
        return _finished(out, seed, console)


def _work(out: Path, seed: int, console: Console) -> dict[str, Any]:
    """All steps, as far as they are not done yet."""
    runs = {method: out / "runs" / method for method in METHODS}
    settings = {method: demo_settings(method, out, seed) for method in METHODS}
    seconds: dict[str, float] = {}
    with _step(console, seconds, "render", "Rendering TwinStreets in two looks"):
        for name, request in EXPORTS.items():
            export(out / "data" / FOLDERS[name], request, workers=cpu_count() or 1)
    with _step(console, seconds, "flow", "Computing optical flow"):
        compute_flow(settings["stcl"])
    for method, run in runs.items():
        with _step(console, seconds, f"train {method}", f"Training: {settings[method].title}"):
            _train(settings[method], run)
    with _step(console, seconds, "evaluate", "Measuring on unseen camera streets"):
        results = {method: evaluate(run) for method, run in runs.items()}
    with _step(console, seconds, "video", "Filming"):
        film = make_film(runs, out)
    seconds = {name: round(value, 1) for name, value in seconds.items()}
    seconds["total"] = round(sum(seconds.values()), 1)
    summary: dict[str, Any] = {method: {"miou": result["miou"]} for method, result in results.items()}
    summary |= {"seconds": seconds, "seed": seed, "steps": settings["stcl"].training.steps}
    command = f"stcl demo --out {out} --seed {seed}"
    write_report(
        list(runs.values()),
        out,
        title="From synthetic streets to a camera",
        summary=ABOUT,
        video=film,
        commands=[command],
        seconds=seconds,
    )
    write_atomic(out / SUMMARY, json.dumps(summary, indent=2).encode())
    plain_console().print(rich_table(compare(list(runs.values()))))
    page = (str(out / "report.html"), "bold")
    console.print(Text.assemble("Look at ", page, f" and {film} ({seconds['total']:.0f} s in all)."))
    return summary


def demo_settings(method: str, out: Path, seed: int) -> Settings:
    """The demo's configuration of a method, with its data below ``out``."""
    path = config_path(f"demo/{method}")
    places = {
        "seed": seed,
        "source": {"root": str(out / "data" / "source")},
        "target": {"root": str(out / "data" / "target")},
        "flow": {"cache": str(out / "data" / "flow")},
    }
    return check_settings(merge(read_yaml(path), places), str(path))


def _train(settings: Settings, run: Path) -> None:
    """Train, or go on where an interrupted demo stopped."""
    config = RunFolder(run).config
    if not config.is_file():
        train(settings, run)
    elif config.read_text(encoding="utf-8") == settings.dump():
        resume(run)
    else:
        raise SettingError(f"{run} holds a run of other settings than the demo's. Choose another --out for the demo.")


def compute_flow(settings: Settings, quiet: bool = False) -> None:
    """Fill the flow cache with all that training and evaluation ask for."""
    pair = ClipSpec(frames=(0, -1), flows=((0, -1),))
    clips = [training_clips(settings, domain, pair) for domain in (settings.source, settings.target)]
    for asked in (*clips, evaluation_clips(settings)):
        precompute(asked, workers=cpu_count() or 1, progress=not quiet)


def make_film(runs: dict[str, Path], out: Path) -> Path:
    """Four panes over the labelled film streets: frame, truth, source only, STCL."""
    folders = {}
    for method in ("source_only", "stcl"):
        folders[method] = out / "film" / method
        evaluate(runs[method], split="test", out=folders[method], samples=10_000)
    panes = {
        "Camera frame": folders["stcl"] / "samples" / "frame",
        "Truth": folders["stcl"] / "samples" / "truth",
        "Source only": folders["source_only"] / "samples" / "prediction",
        "STCL": folders["stcl"] / "samples" / "prediction",
    }
    classes = json.loads((folders["stcl"] / "results.json").read_text())["protocol"]["classes"]
    return write_panes(out / "demo.mp4", panes, classes, fps=10)


def _begin(out: Path, seed: int) -> None:
    """Take a new or empty folder, or go on in that of an interrupted demo; in any other nothing is touched."""
    begun = _read(out / BEGUN)
    foreign = next((path for path in out.iterdir() if path.name not in (LOCK, BEGUN)), None)
    if foreign is not None and begun is None:
        raise SettingError(f"{out} holds something else than a demo: {foreign.name}. Choose a new or empty --out.")
    if begun is not None and begun.get("seed") != seed:
        raise SettingError(
            f"{out} holds an unfinished demo of seed {begun.get('seed')}. Go on with --seed {begun.get('seed')}, or "
            f"choose another --out for seed {seed}."
        )
    write_atomic(out / BEGUN, json.dumps({"seed": seed}).encode())


def _read(path: Path) -> dict[str, Any] | None:
    """What a JSON file of the demo says; None where none is there that can be read."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _finished(out: Path, seed: int, console: Console) -> dict[str, Any]:
    summary = _read(out / SUMMARY)
    if summary is None or not {"seed", *METHODS} <= summary.keys():
        raise SettingError(f"{out / SUMMARY} is no demo's: nothing was touched. Choose another --out.")
    if summary["seed"] != seed:
        raise SettingError(
            f"{out} holds a finished demo of seed {summary['seed']}. Choose another --out for seed {seed}."
        )
    page = (str(out / "report.html"), "bold")
    console.print(Text.assemble(f"{out} holds this demo already: look at ", page, ", or choose another --out."))
    return summary


@contextmanager
def _step(console: Console, seconds: dict[str, float], name: str, text: str) -> Iterator[None]:
    console.print(f"{text} ...", style="bold")
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started
