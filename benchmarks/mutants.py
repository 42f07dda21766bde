"""How much the tests would notice: small mistakes are put into the code, one at a time; `make mutants` runs it.

python benchmarks/mutants.py --count 200 --seed 0

Cosmic Ray makes the mistakes (an operator, a comparison, a number, a condition), in a copy of the project; a seeded
sample of them is tried. For each, the tests of its module and then those of the methods run until one fails. A mistake
that no test fails for is printed: either a property is missing, or the two ways to write it mean the same.

For each mistake a process is forked that has torch imported already, which takes longer than most tests.
"""

import argparse
import ast
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

import av  # noqa: F401  # what forked processes need not import
import cosmic_ray.plugins
import cv2  # noqa: F401
import hypothesis  # noqa: F401
import kornia  # noqa: F401
import lightning.pytorch  # noqa: F401
import pytest
import torch
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).parents[1]
FOLDERS = ("methods", "ops")
"""Of `src/stcl`, where the mistakes are made."""

ALSO = {"settings": ["tests/training/test_config.py"]}
"""Test files of a module that do not have its name."""

KINDS = [
    {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"},
    {"BitAnd", "BitOr", "BitXor"},
    {"Lt", "LtE", "Gt", "GtE", "Eq", "NotEq"},
    {"Is", "IsNot"},
    {"Delete", "Not", "USub", "Invert"},
]
"""Operators that stand for each other in a mistake; one of another kind would fail at once, whatever is tested."""

SLOW = "test_no_sync.py"
"""Looks at no number, and takes a third of the methods' tests' time."""


ELSEWHERE = 99
"""Exit status where the tests have looked at another copy of the project."""


@dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        path: of the module, below the project.
        place: line and column.
        operator: Cosmic Ray's name of what is done.
        occurrence: which of the places that the operator finds in the module.
    """

    path: Path
    place: tuple[int, int]
    operator: str
    occurrence: int

    def code(self, source: str) -> str:
        """The module with the mistake in it."""
        mutated: str = mutate_code(source, cosmic_ray.plugins.get_operator(self.operator)(), self.occurrence)
        return mutated


def find_mutants(path: Path, source: str) -> Iterator[Mutant]:
    """Every mistake that can be made in a module, type hints apart: those are compiled, but say nothing."""
    hints = [*_hints(ast.parse(source))]
    nodes = [*ast_nodes(get_ast(source))]
    for name in sorted(cosmic_ray.plugins.operator_names()):
        operator, (_, *swapped) = cosmic_ray.plugins.get_operator(name), name.split("_")
        if operator.arguments() or name.endswith("NoOp") or not any({*swapped} <= kind for kind in KINDS):
            continue
        places = (start for node in nodes for start, _ in operator().mutation_positions(node))
        for occurrence, place in enumerate(places):
            if not any(start <= place < end for start, end in hints):
                yield Mutant(path, place, name, occurrence)


def _hints(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where each type hint begins and ends."""
    for node in ast.walk(tree):
        for hint in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if hint is not None:
                yield (hint.lineno, hint.col_offset), (hint.end_lineno, hint.end_col_offset)


def draw(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """Distinct places, each as likely however many mistakes can be made there, with one mistake each."""
    places = defaultdict(list)
    for mutant in mutants:
        places[mutant.path, mutant.place].append(mutant)
    chance = random.Random(seed)
    drawn = chance.sample(sorted(places), min(count, len(places)))
    return sorted((chance.choice(places[place]) for place in drawn), key=lambda mutant: (mutant.path, mutant.place))


def tests_of(path: Path) -> list[str]:
    """The test files that a mistake in a module is shown to, its own first."""
    own = sorted((ROOT / "tests").rglob(f"test_{path.stem}.py"))
    names = [*(file.relative_to(ROOT).as_posix() for file in own), *ALSO.get(path.stem, [])]
    methods = sorted(file for file in (ROOT / "tests" / "methods").glob("test_*.py") if file.name != SLOW)
    return [*dict.fromkeys([*names, *(file.relative_to(ROOT).as_posix() for file in methods)])]


def run_tests(project: Path, files: Sequence[str], log: Path, timeout_s: float) -> str:
    """``passed``, ``failed`` or ``too long``, in a process of its own."""
    child = os.fork()
    if child == 0:
        os.setsid()  # what it starts ends with it
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(project)
        sys.path.insert(0, str(project / "src"))
        os.environ["PYTHONPATH"] = str(project / "src")
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files])
        import stcl

        if Path(stcl.__file__).parent != project / "src" / "stcl":
            status = ELSEWHERE
        os._exit(int(status))
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code in (pytest.ExitCode.NO_TESTS_COLLECTED, ELSEWHERE):
                raise RuntimeError(f"The tests cannot be run: {log.read_text()}")
            return "passed" if code == 0 else "failed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "too long"


def main(argv: Sequence[str] | None = None) -> int:
    """Try a sample of mistakes; the exit status is 1 where fewer are caught than wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="how many mistakes are tried (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--only", default="*", metavar="GLOB", help="modules, such as 'ops/warp.py' (default: all)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one mistake (default: 300)")
    parser.add_argument("--least", type=float, default=0.85, help="share that is to be caught (default: 0.85)")
    options = parser.parse_args(argv)
    package = ROOT / "src" / "stcl"
    modules = sorted(
        path.relative_to(ROOT)
        for folder in FOLDERS
        for path in (package / folder).glob("*.py")
        if path.relative_to(package).match(options.only)
    )
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        for name in ("src", "tests", "configs", "benchmarks"):
            shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, project / name)
        return _try(project, modules, options)


def _try(project: Path, modules: Sequence[Path], options: argparse.Namespace) -> int:
    log = project.parent / "log.txt"
    sources = {path: (ROOT / path).read_text(encoding="utf-8") for path in modules}
    mutants = [mutant for path, source in sources.items() for mutant in find_mutants(path, source)]
    chosen = draw(mutants, options.count, options.seed)
    if run_tests(project, tests_of(chosen[0].path), log, options.timeout) != "passed":
        print(f"Without any mistake tests fail:\n{log.read_text()}", file=sys.stderr)
        return 2
    print(f"{len(chosen)} of {len(mutants)} mistakes in {len(modules)} modules", flush=True)
    results: Counter[str] = Counter()
    for number, mutant in enumerate(chosen, 1):
        source = sources[mutant.path]
        code = mutant.code(source)
        begun, changed = time.monotonic(), project / mutant.path
        changed.write_text(code, encoding="utf-8")
        os.utime(changed, (number, number))  # its bytecode is kept for one time of change, in whole seconds
        result = run_tests(project, tests_of(mutant.path), log, options.timeout)
        changed.write_text(source, encoding="utf-8")
        results[result] += 1
        where = f"{mutant.path}:{mutant.place[0]}"
        what = mutant.operator.rpartition("/")[2]
        print(f"{number:4d} {result:8s} {time.monotonic() - begun:5.0f} s  {where}  {what}", flush=True)
        if result == "passed":
            lines = source.splitlines(), code.splitlines()
            print("\n".join(line for line in unified_diff(*lines, n=1, lineterm="")), flush=True)
    caught = 1 - results["passed"] / len(chosen)
    print(f"caught {caught:.1%} of {len(chosen)} mistakes: {dict(results)}")
    return int(caught < options.least)


if __name__ == "__main__":
    sys.exit(main())
