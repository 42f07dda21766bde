"""Domain-adaptive video segmentation by spatio-temporal consistency learning.

The public verbs. What they need is imported when they are called, so that ``import stcl`` costs nothing::

    import stcl

    settings = stcl.load_settings("twinstreets/stcl", ["--training.steps=500"])
    run = stcl.train(settings, "runs/stcl")
    print(stcl.evaluate(run)["miou"])
    network = stcl.load_model(run)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stcl.commands.arena.table import ArenaTable
    from stcl.commands.flow.run import Filled
    from stcl.commands.predict.frames import FrameResult
    from stcl.models import VideoSegmenter
    from stcl.pages.tables import Comparison
    from stcl.training.settings import Settings

__version__ = "0.1.0"

__all__ = [
    "analyse",
    "check_data",
    "evaluate",
    "export",
    "fill_flow_cache",
    "inspect",
    "list_datasets",
    "list_methods",
    "load_model",
    "load_settings",
    "predict",
    "pull",
    "push",
    "resume",
    "run_arena",
    "train",
    "write_flow_report",
    "write_report",
]


def load_settings(config: str | Path, overrides: Sequence[str] = (), preset: str | None = None) -> "Settings":
    """Settings of a YAML file, or of a shipped configuration by name.

    Args:
        config: ``path/to/own.yaml`` or e.g. ``twinstreets/stcl``.
        overrides: as on the command line, e.g. ``["--training.steps=500", "--seed", "1"]``.
        preset: what fits a device's memory, e.g. ``16gb``; between the file and the overrides.
    """
    from stcl.resources import config_path
    from stcl.training.config import load_settings as load

    return load(config_path(config), list(overrides), preset)


def check_data(
    settings: "Settings",
    out: str | Path | None = None,
    full: bool = False,
    workers: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """What the data of settings hold and what is wrong with them; ``["ready"]`` says whether training can start.

    Args and the returned record: :func:`stcl.commands.check.run.check_data`; ``out``: an HTML file to write about it.
    """
    from stcl.commands.check.page import check_page, write_check
    from stcl.commands.check.run import check_data as check

    if out is not None:
        check_page(Path(out))  # before the work begins
    record = check(settings, full, workers, quiet)
    if out is not None:
        write_check(record, Path(out))
    return record


def train(settings: "Settings", out: str | Path, quiet: bool = False) -> Path:
    """Train one network into the new run folder ``out`` and return it; see :func:`stcl.training.train.train`."""
    from stcl.training.train import train as run

    return run(settings, Path(out), quiet)


def resume(run: str | Path, overrides: Sequence[str] = (), quiet: bool = False) -> Path:
    """Go on with an unfinished run from its last checkpoint and return it; see :func:`stcl.training.train.resume`."""
    from stcl.training.train import resume as go_on

    return go_on(Path(run), list(overrides), quiet)


def evaluate(
    run: str | Path,
    split: str | None = None,
    root: str | Path | None = None,
    out: str | Path | None = None,
    samples: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure a finished run; returns what ``results.json`` holds, see :func:`stcl.training.evaluate.evaluate`."""
    from stcl.training.evaluate import evaluate as measure

    root, out = (None if path is None else Path(path) for path in (root, out))
    return measure(Path(run), split, root, out, samples, quiet)


def inspect(subject: "Settings | str | Path", out: str | Path, steps: int = 8) -> Path:
    """Write a page about what enters a training step into the folder ``out`` and return its path.

    Args:
        subject: settings, or the folder of a run, which is watched from its last checkpoint on.
        out: a new or empty folder, or one of an earlier inspection.
        steps: how many to take; the last one is shown. See :func:`stcl.commands.inspect.run.inspect`.
    """
    from stcl.commands.inspect.page import write_inspection
    from stcl.commands.inspect.run import inspect as watch

    return write_inspection(watch(Path(subject) if isinstance(subject, str) else subject, Path(out), steps))


def analyse(
    runs: Sequence[str | Path],
    out: str | Path,
    split: str | None = None,
    frames: int = 100,
    against: str | Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Compare the pseudo labels of runs with the target's labels; writes ``analysis.json`` and a page into ``out``.

    Args and the returned document: :func:`stcl.commands.analyse.run.analyse`; ``against``: an evaluated run whose
    mistakes are compared with those of ``runs``, which are evaluated, too.
    """
    from stcl.commands.analyse.page import changed_mistakes, write_analysis
    from stcl.commands.analyse.run import analyse as look

    paths = [Path(run) for run in runs]
    changes = [] if against is None else changed_mistakes(Path(against), paths)  # refuses before the work begins
    document = look(paths, Path(out), split, frames, quiet, changes)
    write_analysis(Path(out))
    return document


def fill_flow_cache(
    settings: "Settings", shard: tuple[int, int] = (1, 1), workers: int = 0, quiet: bool = False
) -> "list[Filled]":
    """Compute the flow that training and evaluation ask for into ``flow.cache``, as far as it is missing.

    Args: :func:`stcl.commands.flow.run.fill_flow_cache`.
    """
    from stcl.commands.flow.run import fill_flow_cache as fill

    return [*fill(settings, shard, workers, quiet)]


def write_flow_report(
    settings: "Settings", out: str | Path, pairs: int = 20, against: Sequence[str] = ("zero",), quiet: bool = False
) -> Path:
    """Write a page about how well the configured flow explains the frames into the folder ``out``; returns its path.

    Args:
        settings: of a run.
        out: gets ``flow.html``, ``flow.json`` and pictures.
        pairs: pairs of frames of each domain, evenly spread.
        against: further flows to compare with, by name.
        quiet: no progress bar.
    """
    from stcl.commands.flow.page import write_flow_page
    from stcl.commands.flow.quality import measure_flow

    return write_flow_page(measure_flow(settings, Path(out), pairs, against, quiet))


def predict(video: str | Path, model: "VideoSegmenter | str | Path", **options: Any) -> "Iterator[FrameResult]":
    """Segment a video, frame by frame and lazily: labels, confidence, time and class shares of each.

    Args:
        video: file, folder of frames, camera (``camera:0``) or URL.
        model: what :func:`load_model` returned, or what it takes.
        options: of :class:`stcl.commands.predict.frames.PredictOptions`, e.g. ``flip=True``.
    """
    from stcl.commands.predict.frames import PredictOptions, predict_frames
    from stcl.data.video import open_source
    from stcl.training.networks import open_checkpoint

    if isinstance(model, str | Path):
        opened = open_checkpoint(model)
        model, options = opened.network, {"size": opened.size, **options}
    return predict_frames(open_source(video), model, PredictOptions(**options))


def write_report(runs: Sequence[str | Path], out: str | Path) -> "Comparison":
    """Write ``report.html``, ``results.md`` and ``results.csv`` about evaluated runs into the folder ``out``."""
    from stcl.commands.report.page import write_report as write

    return write([Path(run) for run in runs], Path(out))


def run_arena(
    config: str | Path, out: str | Path, jobs: int = 1, quiet: bool = False, only: Sequence[str] = ()
) -> "ArenaTable":
    """Run methods x seeds x pairs as far as they are missing, and write one table.

    See :func:`stcl.commands.arena.run.run_arena`.
    """
    from stcl.commands.arena.run import run_arena as run

    return run(config, Path(out), jobs, quiet, only)


def load_model(path: str | Path, space: str | None = None) -> "VideoSegmenter":
    """A trained network in evaluation mode, on the CPU; its ``space`` says which classes it knows.

    Args:
        path: folder of a finished training, a ``model.safetensors`` or ``checkpoints/*.ckpt`` of one, a model folder of
            format ``safetensors``, ``builtin:NAME``, or a published checkpoint, see docs/checkpoints.md.
        space: name of a label space: the classes of a published network whose number does not say which they are.
    """
    from stcl.training.networks import open_checkpoint

    return open_checkpoint(path, space).network


def export(
    run: str | Path,
    out: str | Path,
    format: str = "safetensors",
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    license: str = "unspecified",
    force: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write a finished run as a model folder to hand on; returns what its ``model.json`` holds.

    Args:
        run: folder of a finished training; its ``results.json``, where there is one, goes into the model card.
        out: new folder.
        format: ``safetensors`` (for :func:`load_model`), ``onnx`` or ``torch-export`` (graphs that run without stcl).
        size: ``(width, height)`` of the graphs' frames in pixels; None: the target's training size.
        dynamic: graphs for any batch, width and height.
        license: identifier of the weights' licence, e.g. ``cc-by-4.0``.
        force: replace a model that lies at ``out``.
        quiet: no progress bar.
    """
    from stcl.commands.export.run import export_run

    return export_run(Path(run), Path(out), format, size, dynamic, license, force, quiet)


def push(folder: str | Path, repository: str, private: bool = False, revision: str | None = None) -> str:
    """Upload a model folder to the Hugging Face hub, or copy it to a local folder.

    See :func:`stcl.commands.hub.run.push`.
    """
    from stcl.commands.hub.run import push as upload

    return upload(Path(folder), repository, private, revision)


def pull(repository: str, out: str | Path, revision: str | None = None, force: bool = False) -> Path:
    """Fetch a model folder from the Hugging Face hub or a local folder, checked.

    See :func:`stcl.commands.hub.run.pull`.
    """
    from stcl.commands.hub.run import pull as fetch

    return fetch(repository, Path(out), revision, force)


def list_methods() -> list[str]:
    """Names of the methods, for ``method.name``."""
    from stcl.methods import METHODS

    return [*METHODS]


def list_datasets() -> list[str]:
    """Names of the data sets, for ``source.name`` and ``target.name``."""
    from stcl.data import DATASETS

    return [*DATASETS]
