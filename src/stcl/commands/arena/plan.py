"""The plan of an arena: methods x seeds x pairs of data, each a run with its settings, its folder and what it lacks.

What has been done is read off the run folders alone, so that an arena goes on after whatever ended it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from stcl.errors import SettingError, unknown_name
from stcl.fields import AnyGroup, Group, group, read
from stcl.files.names import file_name
from stcl.files.paths import real_path
from stcl.resources import config_path
from stcl.training.checking import check_settings
from stcl.training.checkpoint import FREE_KEYS, changed_keys
from stcl.training.config import merge, read_yaml
from stcl.training.run_folder import RunFolder
from stcl.training.settings import Settings

HARMLESS_KEYS = FREE_KEYS | {"name", "title", "flow.cache"}
"""What may differ between a run and its plan, because it is not what the run computes."""

Natural = Annotated[int, Field(ge=0)]


@group
class Streets(Group):
    """TwinStreets that an arena renders for one of its pairs, as docs/data.md does for the benchmark.

    Args:
        style_seed: of both looks.
        size: width and height in pixels.
        clips: streets of the source, and as many of the target to adapt to.
        unseen: streets of the target to measure on.
        source_only: the target is another data set.
    """

    style_seed: Natural = 0
    size: tuple[Natural, Natural] = (256, 128)
    clips: Natural = 300
    unseen: Natural = 150
    source_only: bool = False


@group
class Pair(Group):
    """A source and a target.

    Args:
        configs: folder of the methods' configurations: beside the arena's file, or a shipped one such as
            ``twinstreets``.
        streets: what to render; None: the data are there already.
        settings: for all runs of this pair.
    """

    configs: str
    streets: dict[str, Any] | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


@group
class Row(Group):
    """A row of the table.

    Args:
        config: name of the configuration; None: that of the row.
        settings: of this row, for ablations.
        seeds: None: those of the arena.
    """

    config: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    seeds: list[Natural] | None = None


@group
class Plan(Group):
    """What an arena's file says.

    Args:
        name: of the arena.
        reference: the row that differences refer to.
        seeds: of every row that does not name its own.
        methods: the rows, see :class:`Row`, in the table's order.
        pairs: see :class:`Pair`.
        title: heading of the page; None: the name.
        settings: for all runs.
    """

    name: str
    reference: str
    seeds: list[Natural]
    methods: dict[str, Any]
    pairs: dict[str, Any]
    title: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One run of an arena; ``rendered`` where the arena's folder, which may be moved, holds its data."""

    pair: str
    row: str
    seed: int
    folder: Path
    settings: Settings
    rendered: bool

    @property
    def name(self) -> str:
        """``pair, row, seed n``."""
        return f"{self.pair}, {self.row}, seed {self.seed}"

    def missing(self) -> str | None:
        """What the run lacks next: ``train``, ``resume``, ``evaluate``, or None if it is done."""
        folder = RunFolder(self.folder)
        if not folder.config.is_file():
            return "train"
        if not folder.weights.is_file():
            return "resume"
        return None if (self.folder / "results.json").is_file() else "evaluate"

    def refuse_other(self) -> None:
        """A folder that holds a run of other settings belongs to another arena."""
        folder = RunFolder(self.folder)
        if not folder.config.is_file() or folder.config.read_text(encoding="utf-8") == self.settings.dump():
            return
        changed = changed_keys(folder.settings().as_dict(), self.settings.as_dict()) - HARMLESS_KEYS
        changed -= {"source.root", "target.root"} if self.rendered else set()
        if changed:
            raise SettingError(
                f"{self.folder} holds a run of other settings than the arena asks for ({', '.join(sorted(changed))} "
                "differ). Take another --out, or move that folder away."
            )

    def is_busy(self) -> bool:
        """Whether another process trains or measures this run at the moment."""
        if not self.folder.is_dir():
            return False
        try:
            with RunFolder(self.folder).lock():
                return False
        except SettingError:
            return True


class Arena:
    """An arena's file, checked as far as no data are needed, and the runs that it asks for.

    Args:
        path: the YAML file.
        out: folder of all runs and of the table; rendered data lie in ``data``, runs in ``runs``.

    Raises:
        SettingError: says where in the file what is wrong.
    """

    def __init__(self, path: Path, out: Path) -> None:
        self.path, self.out = path, real_path(out)
        plan = _read(Plan, read_yaml(path), str(path))
        self.name, self.title, self.reference, self.settings = plan.name, plan.title, plan.reference, plan.settings
        self.rows = {str(name): _read(Row, row, f"{path}: methods.{name}") for name, row in plan.methods.items()}
        self.pairs = {str(name): _read(Pair, pair, f"{path}: pairs.{name}") for name, pair in plan.pairs.items()}
        for key, names in (("methods", self.rows), ("pairs", self.pairs)):
            self._check_folders(key, names)
        self.seeds = {name: plan.seeds if row.seeds is None else row.seeds for name, row in self.rows.items()}
        for where, seeds in {"seeds": plan.seeds, **{f"methods.{n}.seeds": s for n, s in self.seeds.items()}}.items():
            if not seeds or len(set(seeds)) < len(seeds):
                raise SettingError(f"{path}: {where} must list different seeds, at least one; found {seeds}.")
        if self.reference not in self.rows:
            raise SettingError(f"{path}: {unknown_name('reference', self.reference, self.rows)}")
        self.streets = {
            name: _read(Streets, pair.streets, f"{path}: pairs.{name}.streets")
            for name, pair in self.pairs.items()
            if pair.streets is not None
        }
        for name, pair in self.pairs.items():
            self._check_settings(name, pair)

    def jobs(self) -> list[Job]:
        """All runs: seeds outermost, then pairs, then rows, so that a whole comparison of one seed comes first."""
        seeds = dict.fromkeys(seed for seeds in self.seeds.values() for seed in seeds)
        return [
            self._job(pair, row, seed)
            for seed in seeds
            for pair in self.pairs
            for row in self.rows
            if seed in self.seeds[row]
        ]

    def data(self, pair: str) -> Path:
        """Where the rendered data and the flow of a pair lie."""
        return self.out / "data" / slug(pair)

    def _job(self, pair: str, row: str, seed: int) -> Job:
        """Configuration < places of rendered data < arena < pair < row < seed."""
        place = f"{self.path}, pair '{pair}', method '{row}'"
        own, about = self.pairs[pair], self.rows[row]
        data = read_yaml(self._config(own.configs, about.config or row, place))
        data = merge(data, {"name": slug(row)} | ({"title": row} if about.config else {}))
        places = self._places(pair) if pair in self.streets else {}
        for layer in (places, self.settings, own.settings, about.settings):
            data = merge(data, layer)
        target = data.get("target")
        if data.get("oracle") is True and isinstance(target, dict):  # trains on what it is measured on, wherever it is
            data = merge(data, {"source": {"root": target.get("root")}})
        folder = self.out / "runs" / slug(pair) / slug(row) / f"seed-{seed}"
        settings = check_settings(merge(data, {"seed": seed}), place)
        return Job(pair, row, seed, folder, settings, pair in self.streets)

    def _places(self, pair: str) -> dict[str, Any]:
        """Where the rendered data of a pair are found."""
        data = self.data(pair)
        places: dict[str, Any] = {"source": {"root": str(data / "source")}, "flow": {"cache": str(data / "flow")}}
        target = {"target": {"root": str(data / "target")}}
        return places if self.streets[pair].source_only else places | target

    def _config(self, configs: str, name: str, place: str) -> Path:
        """A method's configuration in a folder beside the arena's file, or a shipped one."""
        beside = self.path.parent / configs / f"{name}.yaml"
        try:
            return beside if beside.is_file() else config_path(f"{configs}/{name}")
        except SettingError as error:
            raise SettingError(f"{place}: there is no file {beside}. {error}") from None

    def _check_folders(self, key: str, names: Mapping[str, object]) -> None:
        """Each name becomes a folder of its own."""
        seen: dict[str, str] = {}
        for name in names:
            if not slug(name):
                raise SettingError(f"{self.path}: {key}: '{name}' becomes a folder's name: use letters or digits.")
            if slug(name) in seen:
                raise SettingError(
                    f"{self.path}: {key}: '{seen[slug(name)]}' and '{name}' would share the folder '{slug(name)}'. "
                    "Rename one of them."
                )
            seen[slug(name)] = name
        if not seen:
            raise SettingError(f"{self.path}: {key} is empty. Name at least one.")

    def _check_settings(self, name: str, pair: Pair) -> None:
        """Seeds and the places of rendered data are said once."""
        layers = {"settings": self.settings, f"pairs.{name}.settings": pair.settings}
        layers |= {f"methods.{row}.settings": about.settings for row, about in self.rows.items()}
        rendered = self.streets.get(name)
        groups = [] if rendered is None else ["source"] if rendered.source_only else ["source", "target"]
        for where, layer in layers.items():
            if "seed" in layer:
                raise SettingError(f"{self.path}: {where}.seed: an arena's seeds stand in its key 'seeds'.")
            for side in groups:
                if isinstance(layer.get(side), dict) and "root" in layer[side]:
                    raise SettingError(
                        f"{self.path}: {where}.{side}.root and pairs.{name}.streets both say where the {side} lies. "
                        "Take one of them out."
                    )


def slug(name: str) -> str:
    """A name as that of a folder: ``STCL, no alignment`` becomes ``stcl-no-alignment``; empty where nothing is left."""
    plain = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")
    return plain and file_name(plain)


def _read(kind: type[AnyGroup], data: Any, place: str) -> AnyGroup:
    """Plain data as the group that describes them; nothing reads as a group without keys."""
    return read(kind, {} if data is None else data, lambda _: place)
