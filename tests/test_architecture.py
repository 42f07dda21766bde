"""The house rules of docs/architecture.md, read off the source: who imports whom, and how long things are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "stcl"
MODULE_LINES = 300
FUNCTION_LINES = 60
PACKAGE_LINES = 23_000  # without the built-in benchmark: a renderer is a second product, with a limit of its own
BENCHMARK_LINES = 3000

FOUNDATION = {"types", "labels", "protocols", "errors", "fields", "files", "resources", "terminal"}
ANYTHING = {"stcl", "cli", "surroundings"}
ALLOWED = {
    "ops": set(),
    "models": {"ops"},
    "data": {"ops"},
    "flow": {"ops"},
    "twinstreets": {"ops"},
    "methods": {"models", "ops"},
    "training": {"methods", "models", "data", "flow", "ops"},
    "pages": {"ops.colors"},
    "commands": {"training", "methods", "models", "data", "flow", "ops", "twinstreets", "pages", "stcl"},
} | {name: set() for name in FOUNDATION}
"""Zone -> zones or single modules that it may import besides itself and the foundation."""

SEQUENCES = {"arena", "demo"}
"""Commands that are sequences of others."""

PAGE = {"files", "errors", "labels", "types", "pages", "ops.colors"}
"""What the page of a command is made of, besides itself and its neighbours that follow the same rule."""

SHARED = {
    "data.datasets": {"cities", "stills", "class_map"},
    "methods": {"base", "memory", "patches", "self_training", "settings"},
    "flow": {"cache", "formats", "fill"},
}
"""Folders whose modules are siblings, and the modules that the siblings may share."""


def module_name(path: Path) -> str:
    """``stcl.ops.warp`` for ``src/stcl/ops/warp.py``; a package stands for its ``__init__``."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(tree: ast.AST, known: set[str]) -> set[str]:
    """Modules of this package that a module imports, at its top or inside its functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known:
                    found.add(inner)
                elif not (node.module == "stcl" and alias.name == "__version__"):  # a constant, not an arrow
                    found.add(node.module)
    return {name for name in found if name == "stcl" or name.startswith("stcl.")}


def arrows() -> dict[str, set[str]]:
    known = set(SOURCES)
    return {name: imports_of(ast.parse(path.read_text("utf-8")), known) for name, path in SOURCES.items()}


def zone(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "stcl"


def is_allowed(importer: str, imported: str) -> bool:
    source, target = zone(importer), zone(imported)
    if source in ANYTHING:
        return True
    inner = imported.removeprefix("stcl.")
    if source == "commands" and importer.endswith(".page"):
        own = importer.rpartition(".")[0]
        return bool({target, inner} & PAGE) or (imported.startswith(f"{own}.") and not imported.endswith(".run"))
    if target in FOUNDATION:
        return source not in FOUNDATION or importer != imported
    if source != target:
        return bool({target, inner} & ALLOWED.get(source, set()))
    if source == "commands":
        verb, other = importer.split(".")[2:3], imported.split(".")[2:3]
        return verb == other or other == ["arguments"] or bool(SEQUENCES & {*verb})
    folder = next((folder for folder in SHARED if importer.startswith(f"stcl.{folder}.")), None)
    if folder is None or not imported.startswith(f"stcl.{folder}"):
        return True
    return importer.split(".")[-1] in SHARED[folder] or imported.split(".")[-1] in SHARED[folder]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of ``graph`` as a path, or an empty list."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for imported in sorted(graph.get(module, ())):
            if found := visit(imported, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in graph if (found := visit(module, []))), [])


def test_only_allowed_arrows():
    wrong = [f"{a} -> {b}" for a, targets in arrows().items() for b in sorted(targets) if not is_allowed(a, b)]
    assert not wrong, "Forbidden imports (docs/architecture.md, 'Who may import whom'):\n" + "\n".join(wrong)


def test_every_folder_has_a_rule():
    zones = {zone(module) for module in SOURCES}
    assert zones <= set(ALLOWED) | ANYTHING, f"No import rule for {sorted(zones - set(ALLOWED) - ANYTHING)}."


def test_no_circle():
    found = circle({importer: imported - {"stcl"} for importer, imported in arrows().items()})
    assert not found, "Imports go in a circle: " + " -> ".join(found)


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("stcl.cli", "stcl.commands.train", True),
        ("stcl.training.train", "stcl.methods", True),
        ("stcl.training.train", "stcl.commands.report.page", False),
        ("stcl.training.train", "stcl.twinstreets.world", False),
        ("stcl.commands.inspect.run", "stcl.training.networks", True),
        ("stcl.commands.inspect.page", "stcl.training.networks", False),
        ("stcl.commands.inspect.page", "stcl.commands.inspect.run", False),
        ("stcl.commands.inspect.page", "stcl.ops.colors", True),
        ("stcl.commands.inspect.run", "stcl.commands.check.survey", False),
        ("stcl.commands.arena.run", "stcl.commands.demo.run", True),
        ("stcl.pages.tables", "stcl.ops.warp", False),
        ("stcl.pages.tables", "stcl.commands.report.page", False),
        ("stcl.data.datasets.viper", "stcl.data.base", True),
        ("stcl.data.datasets.viper", "stcl.data.datasets.gta5", False),
        ("stcl.data.datasets.gta5", "stcl.data.datasets.stills", True),
        ("stcl.data", "stcl.data.datasets.viper", True),
        ("stcl.data.datasets.viper", "stcl.flow.dis", False),
        ("stcl.methods.stcl", "stcl.methods.tps", False),
        ("stcl.methods.stcl", "stcl.methods.self_training", True),
        ("stcl.methods.stcl", "stcl.data.base", False),
        ("stcl.ops.warp", "stcl.types", True),
        ("stcl.types", "stcl.ops.warp", False),
        ("stcl.ops.warp", "stcl", False),
        ("stcl.models.backbones.resnet", "stcl.models.fusion", True),
    ],
)
def test_the_rules_themselves(importer, imported, allowed):
    assert is_allowed(importer, imported) is allowed


def test_circles_are_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_modules_are_short():
    lines = {module: len(path.read_text("utf-8").splitlines()) for module, path in SOURCES.items()}
    long = {module: count for module, count in lines.items() if count > MODULE_LINES}
    assert not long, f"More than {MODULE_LINES} lines, split where the ideas split: {long}"


def test_the_package_is_short():
    lines = {module: len(path.read_text("utf-8").splitlines()) for module, path in SOURCES.items()}
    benchmark = sum(count for module, count in lines.items() if module.startswith("stcl.twinstreets"))
    total = sum(lines.values()) - benchmark
    assert 0 < benchmark < BENCHMARK_LINES, f"twinstreets has {benchmark} lines, room for {BENCHMARK_LINES}."
    assert total < PACKAGE_LINES, f"{total} lines, the house has room for {PACKAGE_LINES}."


def test_functions_are_short():
    long = []
    for module, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > FUNCTION_LINES:
                    long.append(f"{module}.{node.name}: {count}")
    assert not long, f"More than {FUNCTION_LINES} lines, split where the ideas split: {long}"


def test_no_drawer_for_everything():
    names = {path.stem for path in SOURCES.values()}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


@pytest.mark.skipif("stcl.cli" not in SOURCES, reason="the command line is not written yet")
def test_help_answers_without_heavy_imports():
    command = [sys.executable, "-X", "importtime", "-m", "stcl.cli", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout.lower()
    timed = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.split("|")[-1].strip().split(".")[0] for line in timed}
    assert not imported & {"torch", "lightning", "pytorch_lightning", "kornia", "cv2", "matplotlib", "torchmetrics"}
