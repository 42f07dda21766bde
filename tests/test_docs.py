"""What the documents say is true: links lead somewhere, commands parse, keys, ids and names are those of the code."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stcl.cli import build_parser
from stcl.data import DATASETS
from stcl.labels import PALETTE, RAW_IDS, SPACES, VOID
from stcl.methods import METHODS
from stcl.models import BACKBONES, HEADS
from stcl.models.weights.names import list_pretrained
from stcl.resources import config_path
from stcl.training.checking import check_settings
from stcl.training.config import merge, parse_overrides, read_yaml
from stcl.training.networks import untrained

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def text_of(page: Path) -> str:
    return page.read_text("utf-8")


def fenced(page: Path) -> list[str]:
    """Code blocks of a shell."""
    return re.findall(r"^ *```sh\n(.*?)^ *```", text_of(page), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)


def lines_of(page: Path) -> list[str]:
    """Commands of the shell blocks, one a line, without comments."""
    text = "\n".join(fenced(page)).replace("\\\n", " ")
    return [line for line in (line.partition(" #")[0].strip() for line in text.splitlines()) if line]


def table_rows(page: str, columns: int) -> list[list[str]]:
    """Cells of all table rows with this many columns, without backticks."""
    rows = [line.strip().strip("|") for line in text_of(ROOT / "docs" / page).splitlines() if line.startswith("|")]
    cells = [[cell.strip().replace("`", "") for cell in row.split("|")] for row in rows]
    return [row for row in cells if len(row) == columns and not set(row[0]) <= set("-:")]


# ---- links and pictures ----


@each_page
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(target)
    assert not broken, f"{page.name} links to what is not there: {broken}"


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


# ---- commands ----


COMMANDS = [
    (page.relative_to(ROOT).as_posix(), line.removeprefix(".venv/bin/"))
    for page in PAGES
    for line in lines_of(page)
    if line.removeprefix(".venv/bin/").startswith("stcl ")
] + [
    ("Makefile", line.split("$(DEMO_ARGS)")[0].replace("$(BIN)/", "").strip())
    for line in (ROOT / "Makefile").read_text("utf-8").replace("\\\n", " ").splitlines()
    if line.startswith("\t$(BIN)/stcl ")
]


def test_the_documents_show_every_verb():
    shown = {shlex.split(line)[1] for _, line in COMMANDS}
    assert shown == set(build_parser()._subparsers._group_actions[0].choices)


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_parse(page, line, capsys):
    try:
        arguments, rest = build_parser().parse_known_args(shlex.split(line)[1:])
    except SystemExit:
        pytest.fail(f"{page}: '{line}' does not parse: {capsys.readouterr().err}")
    assert not rest or getattr(arguments, "takes_overrides", False), f"{page}: '{line}' has unknown options {rest}"
    unknown = set(parse_overrides(rest)) - set(defaults("stcl"))
    assert not unknown, f"{page}: '{line}' sets keys that do not exist: {unknown}"
    config = getattr(arguments, "config", None)
    if config is not None and not config.endswith(".yaml"):
        assert config_path(config).is_file()


@each_page
def test_commands_in_sentences_name_known_verbs(page):
    verbs = build_parser()._subparsers._group_actions[0].choices
    named = {words.split()[0] for words in re.findall(r"`stcl ([^`]+)`", prose(page))}
    assert named <= {*verbs, "--help", "--version"}, f"{page.name} names commands that do not exist"


@each_page
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    shown = {line.split()[1] for line in lines_of(page) if line.startswith("make ")}
    shown |= set(re.findall(r"`make ([a-z-]+)[^`]*`", prose(page)))
    assert shown <= targets, f"{page.name} names make targets that do not exist: {shown - targets}"


@each_page
def test_scripts_exist(page):
    scripts = [line.split()[1] for line in lines_of(page) if re.match(r"(\.venv/bin/)?python \S+\.py", line)]
    missing = [script for script in scripts if not (ROOT / script).is_file()]
    assert not missing, f"{page.name} runs scripts that do not exist: {missing}"


# ---- configuration keys ----


@cache
def defaults(method: str) -> dict[str, str]:
    """Every key with its default as YAML would write it."""
    data = {
        "name": "name",
        "space": "synthia_seq-cityscapes_seq",
        "source": {"name": "synthia_seq", "root": "source"},
        "target": {"name": "cityscapes_seq", "root": "target"},
        "method": {"name": method},
    }
    required = {key for key, _ in flatten(data)}
    resolved = check_settings(data, "test").as_dict()
    return {key: "required" if key in required else written(value) for key, value in flatten(resolved)}


def flatten(data: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def written(value: object) -> str:
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def test_the_page_has_every_key_with_its_default():
    wanted = {key: default for method in METHODS for key, default in defaults(method).items()}
    found = {key: default for key, _, default, _ in table_rows("configuration.md", 4) if key in wanted or "." in key}
    found = {key: default for key, default in found.items() if not key.startswith(("backbone_", "head_"))}
    assert found == wanted


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_described(method):
    for page in ("methods.md", "configuration.md"):
        assert f"`{method}`" in text_of(ROOT / "docs" / page)


# ---- networks ----


NETWORKS = re.findall(r"^```yaml\n(.*?)^```", text_of(ROOT / "docs" / "networks.md"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("text", NETWORKS)
def test_the_networks_that_are_shown_can_be_built(text):
    base = read_yaml(config_path("synthia_seq-cityscapes_seq/source_only"))
    settings = check_settings(merge({**base, "network": {}}, yaml.safe_load(text)), "docs/networks.md")
    with torch.device("meta"):
        network = untrained(settings)
    kind, _, weights = (settings.network.weights or "").partition(":")
    assert kind != "pretrained" or weights in list_pretrained(settings.network.backbone)
    assert network.backbone.stages


def test_the_page_has_every_backbone_and_head():
    rows = "\n".join(row[0] for row in table_rows("networks.md", 4) + table_rows("networks.md", 3))
    assert "mit_b0 to mit_b5" in rows
    shown = {*re.findall(r"\w+", rows), *(f"mit_b{size}" for size in range(6))}
    assert {*BACKBONES, *HEADS} <= shown


# ---- data sets ----


def test_the_page_has_every_id():
    rows = table_rows("data.md", len(RAW_IDS) + 1)
    header, *rows = rows[[row[0] for row in rows].index("class") :]
    assert set(header[1:]) == set(RAW_IDS)
    assert [row[0] for row in rows] == [*PALETTE, "known, ignored"]
    for name, *cells in rows:
        for dataset, cell in zip(header[1:], cells, strict=True):
            wanted = {raw for raw, known in RAW_IDS[dataset].items() if known == (name if name in PALETTE else VOID)}
            assert ids(cell) == wanted, f"{dataset}: {name}"


def ids(cell: str) -> set[int]:
    """``0-2, 5`` -> 0, 1, 2, 5."""
    ends = [part.split("-") for part in cell.split(", ") if part != "–"]
    return {number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)}


def test_the_page_has_every_data_set_and_space():
    text = text_of(ROOT / "docs" / "data.md")
    for name, kind in DATASETS.items():
        assert f"`{name}`" in text
        assert all(f"`{split}`" in text for split in kind.splits)
    for space in SPACES.values():
        assert f"| `{space.name}` | {', '.join(space.names)} | {', '.join(space.unreported) or '–'} |" in text


# ---- names in the code ----


@each_page
def test_functions_that_are_named_exist(page):
    missing = [
        f"{file}:{name}"
        for file, name in re.findall(r"`([a-z_/]+\.py):([A-Za-z_.]+)`", text_of(page))
        if name not in names_in(ROOT / "src" / "stcl" / file)
    ]
    assert not missing, f"{page.name} names what is not there: {missing}"


@each_page
def test_files_that_are_named_exist(page):
    named = set(re.findall(r"`((?:src|tests|configs|docs|examples|benchmarks)/[\w./-]+)`", prose(page)))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"{page.name} names files that are not there: {missing}"


def names_in(file: Path) -> set[str]:
    """Functions, classes and their methods that a module defines."""
    if not file.is_file():
        return set()
    found = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


@each_page
def test_no_path_of_a_machine(page):
    found = re.findall(r"(?<![\w.])/(?:home|root|work|tmp|Users)/\S*", text_of(page))
    assert not found, f"{page.name}: {found}"
