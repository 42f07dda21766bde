"""Fill the flow cache of a configuration: every flow that its training and evaluation ask for, computed once.

What is there is skipped, files are written whole, and each process can take a part: so a call after a kill goes on
where it stopped, and several processes or machines may share the folder.
"""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from pathlib import Path

from stcl.data import ClipDataset
from stcl.errors import SettingError, StclError
from stcl.files.folders import remove_abandoned
from stcl.flow import ESTIMATED, CachedFlow, precompute
from stcl.training.domains import make_flow, open_dataset, training_clips
from stcl.training.networks import clip_specs
from stcl.training.settings import Settings
from stcl.types import ClipSpec, FlowKey, FrameRef

PAIR = ClipSpec(frames=(0, -1), flows=((0, -1),))
"""What evaluation asks for."""


WRITING_S = 600.0
"""Seconds after which nobody is writing at a flow any more; it takes less than one."""


@dataclass(frozen=True)
class Filled:
    """What became of one data set.

    Attributes:
        role: ``source``, ``target`` or ``evaluation``.
        data: the data set, its split and its root, in words.
        folder: of the cache files.
        pairs: flows that this process was to see to.
        written: those that it computed; the others were there.
        missing: why nothing can be measured, so that no flow is needed for it; empty where it can.
    """

    role: str
    data: str
    folder: Path
    pairs: int
    written: int
    missing: str = ""


def fill_flow_cache(
    settings: Settings, shard: tuple[int, int] = (1, 1), workers: int = 0, quiet: bool = False
) -> Iterator[Filled]:
    """Compute what is missing in ``flow.cache``, one data set after the other; no label file is opened.

    Args:
        settings: of a run; its method says which flows it wants.
        shard: ``(number, of)``, from ``(1, 1)``: which of so many equal parts this process takes.
        workers: processes; 0 computes in this one, where a GPU can be used.
        quiet: no progress bar.

    Raises:
        SettingError: there is nothing to fill, or no such part.
        DataError: frames cannot be read, or the cache holds flow of other frames or settings.
    """
    flow, (number, count) = settings.flow, shard
    if flow.name not in ESTIMATED:
        raise SettingError(
            f"Flow '{flow.name}' is not estimated from frames, so there is nothing to compute before a training. "
            f"Estimated: {', '.join(ESTIMATED)} (flow.name)."
        )
    if flow.cache is None:
        raise SettingError("flow.cache is not set, so computed flow would be lost. Say where to: --flow.cache DIR.")
    if not 1 <= number <= count:
        raise SettingError(f"A shard is i/n with 1 <= i <= n; found {number}/{count}.")
    asked = asked_clips(settings)
    try:
        asked["evaluation"] = _measured_clips(settings)
    except StclError as error:  # as for a camera of which nothing is labelled
        yield Filled("evaluation", settings.evaluation.split, Path(flow.cache), 0, 0, str(error))
    for role, clips in asked.items():
        pairs = FramePairs(clips, shard)
        remove_abandoned(pairs.flow.folder, older_than_s=WRITING_S)
        written = precompute(pairs, workers, progress=not quiet)
        yield Filled(role, str(clips.dataset), pairs.flow.folder, len(pairs), written)


def asked_clips(settings: Settings) -> dict[str, ClipDataset]:
    """The clips whose flow a training asks for, by role; those of the target are found without labels."""
    source_spec, target_spec = clip_specs(settings)
    asked = {"source": training_clips(settings, settings.source, source_spec)}
    if target_spec is not None and target_spec.flows:
        asked["target"] = training_clips(settings, settings.target, target_spec)
    return asked


def _measured_clips(settings: Settings) -> ClipDataset:
    """The clips whose flow an evaluation asks for, found without opening a label; refused where there is no label."""
    dataset = open_dataset(settings.target, settings.evaluation.split, settings.evaluation.root)
    dataset.check_space(settings.space)
    flow, size = make_flow(settings.flow, dataset), settings.target.size
    return ClipDataset(dataset, PAIR, settings.space, size, "labelled", flow, every_frame=True)


class FramePairs:
    """Each flow of a data set of clips once, though neighbouring clips share it; only its two frames are read.

    Args:
        clips: whose flow has a cache.
        shard: which part of them, see :func:`fill_flow_cache`.
    """

    def __init__(self, clips: ClipDataset, shard: tuple[int, int] = (1, 1)) -> None:
        assert isinstance(clips.flow, CachedFlow)  # there is a cache folder
        self.flow, self.size = clips.flow, clips.size
        self.views = {key: _only(clips, key) for key in clips.spec.flows}
        found: dict[tuple[str, str], tuple[int, FlowKey]] = {}
        for item in range(len(clips)):
            refs = clips.refs(item)
            for key in clips.spec.flows:
                a, b = (refs[offset] for offset in key)
                if a is not b:
                    found.setdefault((a.name, b.name), (item, key))
        self.jobs = [*found.values()][shard[0] - 1 :: shard[1]]

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, position: int) -> None:
        """Compute a flow that is not there."""
        item, key = self.jobs[position]
        a, b = self.refs(position)
        if not self.flow.holds(a, b, self.size):
            self.views[key][item]  # loading a clip asks for its flow

    def refs(self, position: int) -> tuple[FrameRef, FrameRef]:
        """The frames of a flow: from, to."""
        item, key = self.jobs[position]
        refs = self.views[key].refs(item)
        return refs[key[0]], refs[key[1]]


def _only(clips: ClipDataset, key: FlowKey) -> ClipDataset:
    """The same clips with the two frames and the flow of ``key`` alone: no other frame and no label."""
    view = copy(clips)
    view.spec = ClipSpec(frames=key, flows=(key,))
    return view
