"""Odd calls of every command: odd words, configurations, names of files and surroundings get one message and no more.

Options come from the real parser and keys from the real settings, so that a new one is tried as soon as it is there. A
new command needs one line in ``CALLS``. The suite tries some calls of each, the same ones each time; ``make fuzz``
tries many, others each time. What would take long is cut off: it counts that it was reached.
"""

import argparse
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stcl.commands.arena.run
import stcl.commands.demo.run
import stcl.twinstreets.export as rendering
from stcl.cli import COMMANDS, build_parser, main
from stcl.data.io import write_image
from stcl.errors import StclError, one_line, shortened
from stcl.fields import Group, fields_of, group_of
from stcl.files.places import shown_place
from stcl.methods import METHODS
from stcl.pages.film import VideoWriter
from stcl.training.config import merge
from stcl.training.settings import Settings
from stcl.training.state import Training

LONG = int(os.environ.get("FUZZ_CASES", "0"))
"""How many damaged files of each kind ``make fuzz`` makes; a call takes longer, so there are fewer of each."""

CASES = LONG // 20 if LONG else 10
SECONDS, ROOM_BYTES = 60, 4 * 2**30

CALLS: dict[str, str] = {
    "demo": "--out out",
    "train": "own.yaml --out out --quiet",
    "evaluate": "run --out out --quiet --samples 1",
    "inspect": "own.yaml --out out --steps 1",
    "predict": "street.mp4 --checkpoint run --out out --quiet --frames 2",
    "flow": "own.yaml --quiet --workers 0 --flow.cache out",
    "report": "run --out out",
    "arena": "plan.yaml --out out --quiet",
    "analyse": "run --out out --frames 2 --quiet",
    "export": "run --out out --format safetensors --quiet",
    "push": "model ./out",
    "pull": "./model --out out",
    "data check": "own.yaml --out out/check.html --workers 0 --quiet",
    "data prepare": "own.yaml --prepared out --workers 0 --quiet",
    "data render": "--out out --layout synthia-seq --style clean --clips 1 --frames 2 --size 64 32 --workers 1 --quiet",
}
"""A call of every command that does its work."""

STOPPED = {"demo", "arena"}
"""Commands whose work takes minutes."""

# fmt: off
NUMBERS = (
    "0", "-1", "1", "2", "0.5", "1e400", "nan", "inf", "-inf", "1e-300", "1e300", "99999999999999999999", "9" * 5000,
    "²", "٣", "0x10", "1_000", "+3", " 4 ", "1/0", "0/5", "5/1", "1/2", "3x", "x", "0x0", "99999x99999", "1x1",
    "64x32", "-1x5",
)
TEXTS = (
    "", " ", "\n", "\x1b[31m", "a\tb", "\udce4", "é", "日本", "[red]", "[/b]", "-", "--", "---", "%s", "{}", "null",
    "true", "[1, 2]", "{a: 1}", "&a [*a]", "!!python/object:os.system x", "'", '"', ":", "#", "=", "\u202e",
    "every:0", "every:1", "every:" + "9" * 5000, "list:", "list:loop", "list:own.yaml", "builtin:x", "pretrained:x",
    "camera:99", "a" * 5000, "http://127.0.0.1:1/x", "rtsp://u:p@127.0.0.1:1/x", "x/y", "cpu", "cuda:99", "meta",
    "synthia_seq", "zero", "exact",
)
PLACES = (
    ".", "..", "~", "~no_such_user/a", "source", "target/leftImg8bit_sequence", "street.mp4", "run/config.yaml",
    "run", "loop", "loop/x", "loop.yaml", "nothing/x", "empty", "missing.yaml", "y" * 255, "y" * 255 + "/y",
    "y" * 256, "street.mp4/x", "\udce4.yaml", "\udce4", "frames", "b" * 240, "b" * 240 + ".mp4", "own.yaml", "model",
    "nothing.mp4", "/dev/null", "pipe", "pipe.yaml", "pipe.mp4", "c" * 250 + ".yaml", "own.yaml/",
    "./source/../own.yaml",
)
VALUES = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 10**400, 0.5, -0.5, 1.5, 1e-300, 1e300,
    float("nan"), float("inf"), "", "a", "\0", "..", "~no_such_user/a", "1e3", "loop", "\x1b[31m", "é", [], {},
    [1, 2], [[]], {"a": {}}, {"name": "a"}, {"": 0}, [1e400, -5], [None] * 12, [0, 0], [-1, -1], [10**9, 10**9],
    [32, 32], [64, 32], ["a", 1], "every:0", "list:loop", "list:own.yaml", "9" * 5000, "b" * 300, "street.mp4",
    "empty",
)
SURROUNDINGS: tuple[dict[str, str | None], ...] = (
    {"HOME": None}, {"HOME": "missing"}, {"HOME": ""}, {"TMPDIR": "missing"}, {"COLUMNS": "0"}, {"COLUMNS": "1"},
    {"COLUMNS": "-5"}, {"COLUMNS": "abc"}, {"TERM": "dumb"}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}, {"RANK": "abc"},
    {"RANK": "7"}, {"RANK": "-1"}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "9" * 5000}, {"LOCAL_RANK": ""},
    {"LOCAL_RANK": "3"}, {"LOCAL_WORLD_SIZE": "4"}, {"SLURM_PROCID": "zz"}, {"SLURM_NTASKS": "0"},
    {"SLURM_NTASKS": "x"}, {"SLURM_LOCALID": "1.5"}, {"MASTER_PORT": "http"}, {"STCL_PRETRAINED": "loop"},
    {"CUDA_VISIBLE_DEVICES": "abc"}, {"LINES": "abc"},
)
# fmt: on

# ---- a world for every call ----


class StoppedError(StclError):
    """A call reached what takes long."""


def tiny_settings() -> dict[str, Any]:
    domains = {"source": "synthia_seq", "target": "cityscapes_seq"}
    return {
        "base": "twinstreets/stcl",
        "prepared": None,
        **{domain: {"name": name, "root": domain, "size": [64, 32]} for domain, name in domains.items()},
        "flow": {"cache": None},
        "network": {"backbone_settings": {"width": 8}, "weights": None},
        "training": {"steps": 2, "batch_size": 2, "workers": 0, "accelerator": "cpu", "log_every": 1},
        "method": {"warmup": 1},
    }


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a configuration, a finished run, a video and odd files; all paths in it are relative."""
    root = tmp_path_factory.mktemp("pristine")
    before = Path.cwd()
    try:
        os.chdir(root)
        render = ["data", "render", "--size", "64", "32", "--frames", "3", "--workers", "1", "--quiet", "--layout"]
        city = ["cityscapes-seq", "--style", "camera", "--out", "target", "--clips"]
        assert main([*render, "synthia-seq", "--style", "clean", "--out", "source", "--clips", "2"]) == 0
        assert main([*render, *city, "2"]) == 0
        assert main([*render, *city, "1", "--split", "val"]) == 0
        Path("own.yaml").write_text(yaml.safe_dump(tiny_settings()))
        assert main(["train", "own.yaml", "--out", "run", "--quiet"]) == 0
        assert main(["evaluate", "run", "--quiet", "--samples", "1"]) == 0
        assert main(["export", "run", "--out", "model", "--format", "safetensors", "--license", "mit", "--quiet"]) == 0
        streets = {"size": [64, 32], "clips": 2, "unseen": 1}
        plan = {"name": "tiny", "reference": "stcl", "seeds": [0], "methods": {"stcl": {}}}
        plan["pairs"] = {"streets": {"configs": "twinstreets", "streets": streets}}
        Path("plan.yaml").write_text(yaml.safe_dump(plan))
        with VideoWriter(Path("street.mp4"), fps=25) as film:
            for number in range(3):
                film.write(np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8))
        frames = ("frames/\udce4_1.png", f"{'b' * 240}/{'f' * 245}_1.png")
        for name in frames:
            write_image(Path(name), np.zeros((32, 32, 3), np.uint8))
        shutil.copy("street.mp4", f"{'b' * 240}.mp4")
        Path("empty").mkdir()
        for name in ("loop", "loop.yaml"):
            Path(name).symlink_to(name)
    finally:
        os.chdir(before)
    return root


Snapshot = dict[str, tuple[int, int]]


def snapshot(root: Path) -> Snapshot:
    """Every file with its size and time of change, every folder and link."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)  # noqa: PTH118  names that are no text
            status = os.lstat(path)
            plain = name in files
            found[os.path.relpath(path, root)] = (status.st_size, status.st_mtime_ns) if plain else (0, 0)
    return found


class World:
    """A copy of the pristine world, made anew whenever a call has changed it."""

    def __init__(self, pristine: Path, place: Path) -> None:
        self.pristine, self.root, self.work = pristine, place / "box", place / "box" / "work"
        self.before: Snapshot = {}

    def renew(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        for name in ("home", "tmp"):
            (self.root / name).mkdir(parents=True)
        shutil.copytree(self.pristine, self.work, symlinks=True)
        for name in ("pipe", "pipe.yaml", "pipe.mp4"):
            os.mkfifo(self.work / name)
        self.before = snapshot(self.root)

    def changes(self) -> tuple[set[str], set[str]]:
        """Paths below the root that are new, and those that are gone or were changed."""
        now = snapshot(self.root)
        return now.keys() - self.before.keys(), {name for name, value in self.before.items() if now.get(name) != value}


# ---- calls ----


class Call(NamedTuple):
    """Words of a command, what was made odd in them, and the surroundings."""

    words: list[str]
    files: dict[str, bytes]
    clues: list[str]
    surroundings: dict[str, str | None]
    encoding: str


def actions_of(verb: str) -> list[argparse.Action]:
    """What the real parser knows of a command."""
    parser: argparse.ArgumentParser = build_parser()
    for word in verb.split():
        (below,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = below.choices[word]
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


def keys() -> list[str]:
    """All keys of the real settings, of all methods."""
    found = set(keys_of(Settings)) | {"method.name"}
    return sorted(found.union(*(keys_of(method.Settings, "method.") for method in METHODS.values())))


def keys_of(kind: type[Group], prefix: str = "") -> Iterator[str]:
    """Keys below a group, and groups in it."""
    for name, field in fields_of(kind).items():
        yield f"{prefix}{name}"
        if (inner := group_of(field)) is not None:
            yield from keys_of(inner, f"{prefix}{name}.")


def base_words(verb: str) -> list[str]:
    return [*verb.split(), *CALLS[verb].split()]


@st.composite
def odd_calls(draw: st.DrawFn, verb: str) -> Call:
    """A call that does its work, with one or two things changed."""
    words, files, clues = base_words(verb), dict[str, bytes](), list[str]()
    actions = actions_of(verb)
    takes_keys = any(action.dest in ("config", "subject") for action in actions)
    ways = ["option", "option", "option", "place", "word", "surroundings"] + ["key", "key", "file", "file"] * takes_keys
    ways += ["plan", "plan"] * (verb == "arena")
    surroundings: dict[str, str | None] = {}
    for way in draw(st.lists(st.sampled_from(ways), min_size=1, max_size=2)):
        if way == "surroundings":
            surroundings |= draw(st.sampled_from(SURROUNDINGS))
            clues += [*surroundings, *(value for value in surroundings.values() if value)]
        elif way == "option":
            change_option(draw, words, clues, draw(st.sampled_from(actions)), len(verb.split()))
        elif way == "place":
            place = draw(st.integers(len(verb.split()), len(words) - 1))
            clues += [words[place - 1], words[place]]
            words[place] = draw(st.sampled_from(PLACES))
            clues.append(words[place])
        elif way == "word":
            change_words(draw, words, clues, len(verb.split()))
        elif way == "key":
            key, value = draw(st.sampled_from(keys())), draw(st.sampled_from((*NUMBERS, *TEXTS, *PLACES)))
            words += [f"--{key}", value] if draw(st.booleans()) else [f"--{key}={value}"]
            clues += [key, key.rpartition(".")[2], value]
        else:
            change_file(draw, way, words, files, clues)
    return Call(words, files, clues, surroundings, draw(st.sampled_from(("utf-8", "utf-8", "ascii"))))


def change_option(draw: st.DrawFn, words: list[str], clues: list[str], action: argparse.Action, first: int) -> None:
    """Give an option of the parser, or one of its positional words, an odd value."""
    kinds = (*NUMBERS, *TEXTS, *PLACES, *map(str, action.choices or ()))
    name = action.option_strings[0] if action.option_strings else ""
    values = [] if action.nargs == 0 else draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=2))
    if action.nargs not in ("+", "*", 2):
        values = values[:1]
    clues += [name or str(action.metavar or action.dest), action.dest, *values]
    if name:
        words += [name, *values] if draw(st.booleans()) or len(values) != 1 else [f"{name}={values[0]}"]
    else:
        words[first : first + 1] = values


def change_words(draw: st.DrawFn, words: list[str], clues: list[str], first: int) -> None:
    """Take a word out, say it twice, or say something else."""
    place = draw(st.integers(first, len(words) - 1))
    clues += [*words[1:], "required", "expected"]
    way = draw(st.sampled_from(("out", "twice", "other")))
    if way == "out":
        del words[place]
    else:
        words.insert(place, words[place] if way == "twice" else draw(st.sampled_from((*NUMBERS, *TEXTS))))
        clues.append(words[place])


def change_file(draw: st.DrawFn, way: str, words: list[str], files: dict[str, bytes], clues: list[str]) -> None:
    """Write an odd value at a key of the configuration, or of the plan."""
    value = draw(st.sampled_from(VALUES))
    if way == "file":
        name, data, key = (
            "own.yaml",
            tiny_settings(),
            draw(st.sampled_from([*keys(), "base", "nothing", "method.nothing"])),
        )
    else:
        plan = {"name": "tiny", "reference": "stcl", "seeds": [0], "methods": {"stcl": {"seeds": [0], "settings": {}}}}
        pair = {"configs": "twinstreets", "streets": {"size": [64, 32], "clips": 2, "unseen": 1}, "settings": {}}
        name, data = "plan.yaml", {**plan, "pairs": {"streets": pair}, "settings": {}, "title": "T"}
        inner = ("", "stcl.", "stcl.config.", "stcl.seeds.", "stcl.settings.", "streets.", "streets.streets.size.")
        key = draw(st.sampled_from([*data, *(f"methods.{k}" for k in inner[:5]), *(f"pairs.{k}" for k in inner[5:])]))
        key = key.rstrip(".")
    *groups, last = key.split(".")
    change: dict[str, Any] = {last: value}
    for group in reversed(groups):
        change = {group: change}
    files[name] = yaml.safe_dump(merge(data, change), allow_unicode=True).encode()
    clues += [key, last, str(value), name]


# ---- what holds for every call ----


@contextmanager
def cut_off(works: bool) -> Iterator[None]:
    """Nothing in here takes long or takes much memory; training begins only where that ``works``."""

    def never(*_: object, **__: object) -> None:
        raise StoppedError("Reached what takes long.")

    def run(root: Path, request: Any, clips: list[int], workers: int) -> Any:
        small = len(clips) * request.frames <= 4 and request.size[0] * request.size[1] <= 64 * 64 and workers <= 1
        return real_run(root, request, clips, workers) if small else never()

    def alarm(*_: object) -> None:
        pytest.fail(f"took longer than {SECONDS} seconds")

    real_run = rendering._run
    limit = resource.getrlimit(resource.RLIMIT_AS)
    with ExitStack() as stack:
        for place, name, other in (
            (Training, "start", Training.start if works else never),
            (rendering, "_run", run),
            (stcl.commands.demo.run, "export", never),
            (stcl.commands.arena.run, "prepare", never),
        ):
            stack.enter_context(mock.patch.object(place, name, other))
        before = signal.signal(signal.SIGALRM, alarm)
        signal.alarm(SECONDS)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM_BYTES, limit[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limit)
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


@contextmanager
def inside(world: World, call: Call) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """The working folder, environment and standard streams of a call; yields what it writes to the latter."""
    own = {"HOME": str(world.root / "home"), "TMPDIR": str(world.root / "tmp"), "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}
    own |= {"MPLCONFIGDIR": str(world.root.parent)}
    environment = {**os.environ, **own, **call.surroundings}
    out, error = io.BytesIO(), io.BytesIO()
    streams = [io.TextIOWrapper(binary, call.encoding, "strict", write_through=True) for binary in (out, error)]
    here, handlers = Path.cwd(), {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with (
        mock.patch.dict(
            os.environ, {key: value for key, value in environment.items() if value is not None}, clear=True
        ),
        mock.patch.object(sys, "stdout", streams[0]),
        mock.patch.object(sys, "stderr", streams[1]),
        mock.patch.object(tempfile, "tempdir", None),
    ):
        try:
            os.chdir(world.work)
            yield out, error
        finally:
            os.chdir(here)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def run_call(world: World, call: Call, works: bool = False) -> tuple[int, str, str]:
    """Exit status, standard output and standard error; any other exception is a traceback of the command."""
    with inside(world, call) as (out, error):
        with cut_off(works):
            try:
                status = main(call.words)
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
        return status, out.getvalue().decode(call.encoding), error.getvalue().decode(call.encoding)


def check(world: World, call: Call) -> None:
    """What must hold whatever was called."""
    if not world.before:
        world.renew()
    for name, content in call.files.items():
        (world.work / name).write_bytes(content)
    world.before = snapshot(world.root) if call.files else world.before
    status, said, told = run_call(world, call)
    new, lost = world.changes()
    if new or lost or call.files:
        world.before = {}
    assert status in (0, 1, 2, 75, 130), (status, told)
    assert "Traceback" not in told
    if status != 0 and "Training cannot go through" in said:  # what a check of data is for
        assert not told
    elif status != 0:
        last = told.rstrip("\n").rpartition("\n")[2]
        assert last.startswith("stcl: ") and last.isprintable(), told
        if "Reached what takes long" not in told:
            assert any(named(clue, told) for clue in call.clues), (told, call.clues)
    places = [*outputs(call), "home/.cache"]
    strange = {path for path in new if not any(belongs(path, place) for place in places)}
    assert not strange, f"written elsewhere: {sorted(strange)}, not in {places}"
    assert not {path for path in lost if not any(belongs(path, place) for place in changed_in_place(call))}, lost


def named(clue: str, told: str) -> bool:
    """Whether a message says what was odd, or at least how it begins."""
    text = os.path.normpath(clue.strip().strip("'\""))
    line = one_line(text)
    forms = {text, line, shortened(line)[:40], line[:40], repr(text).strip("'\"")[:40], shown_place(text)}
    return any(form in told for form in forms if form)


def outputs(call: Call) -> list[str]:
    """Places below the world's root that a call may write to, because it was told so."""
    names = ("--out", "--report", "--flow.cache", "--prepared", "--resume")
    words, found = call.words, []
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in names:
            found.append(value if equals else words[place + 1] if place + 1 < len(words) else "")
    for content in call.files.values():
        data = yaml.safe_load(content)
        found += [data["prepared"] if isinstance(data.get("prepared"), str) else ""] if isinstance(data, dict) else []
        flow = data.get("flow") if isinstance(data, dict) else None
        found += [flow["cache"]] if isinstance(flow, dict) and isinstance(flow.get("cache"), str) else []
    if words[0] == "push":
        found += words[2:]
    if words[0] == "evaluate":
        found += words[1:]
    found.append("data/prepared" if not call.files else "")
    places = [f"home{value[1:]}" if value.partition("/")[0] == "~" else f"work/{value}" for value in found]
    return [os.path.normpath(place) for place, value in zip(places, found, strict=True) if value.strip()]


def changed_in_place(call: Call) -> list[str]:
    """Places whose files a call may change."""
    if call.words[0] == "evaluate":
        return [f"work/{word}/{part}" for word in call.words[1:] for part in ("results.json", "samples")]
    if "--resume" in call.words:
        return ["work/run"]
    return ["work/model"] if "--force" in call.words else []


def belongs(path: str, place: str) -> bool:
    """Whether a path lies in a place, or is a folder on the way to it."""
    return place in (".", path) or path.startswith(f"{place}/") or place.startswith(f"{path}/")


@pytest.fixture
def world(pristine: Path, tmp_path: Path) -> World:
    return World(pristine, tmp_path)


def test_every_command_has_a_call():
    assert CALLS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("verb", CALLS)
def test_the_call_does_its_work(world, verb):
    world.renew()
    status, _, told = run_call(world, Call(base_words(verb), {}, [], {}, "ascii"), works=True)
    assert (status, "takes long" in told) == ((2, True) if verb in STOPPED else (0, False)), told
    assert world.changes()[0] or verb in STOPPED


@pytest.mark.parametrize("verb", CALLS)
def test_an_odd_call_gets_one_message(verb, world):
    @settings(
        max_examples=CASES,
        derandomize=not LONG,
        deadline=None,
        database=None,
        print_blob=bool(LONG),
        suppress_health_check=list(HealthCheck),
    )
    @given(odd_calls(verb))
    def every_call(call: Call) -> None:
        check(world, call)

    every_call()
