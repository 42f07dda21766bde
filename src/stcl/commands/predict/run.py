"""``stcl predict``: many videos, each into a folder of its own; what is done is never done again."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.progress import TaskID, TextColumn

from stcl.commands.predict.frames import PredictOptions, check_frames, predict_frames
from stcl.commands.predict.recording import Outputs, Recording
from stcl.data.frames import FrameSource
from stcl.data.video import name_of, open_source
from stcl.errors import BusyError, DataError, SettingError, StclError
from stcl.files.names import same_file
from stcl.files.places import shown_place
from stcl.models import VideoSegmenter
from stcl.terminal import progress_bar
from stcl.training.networks import OpenedModel, open_checkpoint


@dataclass(frozen=True)
class Job:
    """What is asked for beside the videos themselves.

    Args:
        options: how frames are segmented.
        outputs: what is kept.
        fps: frames a second of folders.
        limit: no more frames than this of each video; None: all.
        timeout_s: how long to wait for an answer from the net, seconds.
        shard: ``(number, of)``, from ``(1, 1)``: which of so many equal parts of the inputs this process takes.
        force: replace earlier results.
        quiet: no progress bar.
    """

    options: PredictOptions = field(default_factory=PredictOptions)
    outputs: Outputs = field(default_factory=Outputs)
    fps: Fraction = Fraction(10)
    limit: int | None = None
    timeout_s: float = 10.0
    shard: tuple[int, int] = (1, 1)
    force: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one video.

    Attributes:
        place: as it was given.
        folder: of the result.
        frames: that the result has; None where it was there already.
        fps: frames a second that this call made.
        problem: what ended the video early; the result holds the frames before.
    """

    place: str
    folder: Path
    frames: int | None
    fps: float = 0.0
    problem: str = ""


def predict_files(
    inputs: Sequence[str], checkpoint: str | Path, out: Path, job: Job | None = None, space: str | None = None
) -> Iterator[Outcome]:
    """Segment videos with one network, each into ``out/<name of the video>``.

    All inputs and folders are looked at before the work begins. A video that turns out to be damaged ends where the
    damage is; the others go on.

    Args:
        inputs: see :func:`stcl.data.video.open_source`.
        checkpoint, space: see :func:`stcl.training.networks.open_checkpoint`.
        out: folder for the folders of results.
        job: the rest.
    """
    job = job or Job()
    chosen = share_of(inputs, job.shard)
    check_names(inputs)
    model = open_checkpoint(checkpoint, space)
    options = replace(job.options, confidence="confidence" in job.outputs.save, size=job.options.size or model.size)
    request = {
        "network": fingerprint(model.network),
        "options": asdict(replace(options, device=None)),
        "outputs": asdict(job.outputs),
        "limit": job.limit,
    }
    recordings = []
    for place in chosen:
        source = open_source(place, job.fps, job.timeout_s)
        check_frames(source)
        wanted = {**request, "input": source.identity(), "fps": str(job.fps)}
        folder = out / source.name
        recordings.append((place, Recording(folder, source, model.space, job.outputs, wanted, job.force)))
    undone = list[StclError]()
    for place, recording in recordings:
        try:
            yield _record(place, recording, model, options, job)
        except (BusyError, DataError) as error:  # it is in other hands, or nothing can be made of it; others go on
            undone.append(error)
    if undone:
        raise type(undone[0])(" ".join(map(str, undone)))


def _record(place: str, recording: Recording, model: OpenedModel, options: PredictOptions, job: Job) -> Outcome:
    """Segment one video into its folder, unless that was done before."""
    if recording.finished:
        return Outcome(place, recording.folder, None)
    with recording.writing():
        if recording.finished:  # by another call, since this one looked
            return Outcome(place, recording.folder, None)
        return _segment(place, recording, model, options, job)


def _segment(place: str, recording: Recording, model: OpenedModel, options: PredictOptions, job: Job) -> Outcome:
    """Segment what is missing of one video."""
    source, problem, made, started = recording.source, "", 0, time.monotonic()
    results = predict_frames(source, model.network, options, first=recording.first)
    if job.limit is not None:
        limit = job.limit
        results = takewhile(lambda result: result.index < limit, results)
    with _progress(source, recording.first, job) as advance:
        try:
            for result in results:
                recording.add(result)
                made += 1
                advance()
        except DataError as error:
            problem = str(error)
        except KeyboardInterrupt:
            if not source.live:
                raise  # it goes on from its last part
        seconds = time.monotonic() - started
        frames = recording.finish(problem, seconds)
    return Outcome(place, recording.folder, frames, made / seconds, problem)


@contextmanager
def _progress(source: FrameSource, first: int, job: Job) -> Iterator[Any]:
    """A bar with frames and frames a second; yields what counts one frame."""
    rate = TextColumn("{task.fields[rate]:.1f} frames/s")
    total = min((number for number in (source.count, job.limit) if number is not None), default=None)
    with progress_bar(job.quiet, rate) as progress:
        task: TaskID = progress.add_task(source.name, total=total, completed=first, rate=0.0)
        started, done = time.monotonic(), 0

        def advance() -> None:
            nonlocal done
            done += 1
            progress.update(task, advance=1, rate=done / max(time.monotonic() - started, 1e-6))

        yield advance


def share_of(inputs: Sequence[str], shard: tuple[int, int]) -> list[str]:
    """The inputs that part ``number`` of ``of`` takes: every ``of``-th, so that long and short ones mix."""
    number, count = shard
    if not 1 <= number <= count:
        raise SettingError(f"A shard is i/n with 1 <= i <= n; found {number}/{count}.")
    return [*inputs][number - 1 :: count]


def check_names(inputs: Sequence[str]) -> None:
    """Two inputs never share a folder."""
    taken: dict[str, str] = {}
    for place in inputs:
        name = name_of(place)
        if same_file(name) in taken:
            raise SettingError(
                f"'{shown_place(taken[same_file(name)])}' and '{shown_place(place)}' would both go into the folder "
                f"'{shown_place(name)}'. Give them in two calls with another --out each."
            )
        taken[same_file(name)] = place


def fingerprint(network: VideoSegmenter) -> str:
    """A digest of all weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
