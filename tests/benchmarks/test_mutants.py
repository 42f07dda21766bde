"""`make mutants` puts in mistakes that are mistakes, and draws the same ones for the same seed."""

import ast
from pathlib import Path

import pytest

from scripts import ROOT

pytest.importorskip("cosmic_ray")

MODULE = '''
"""1 + 1 in a sentence is no code."""


def share(part: "int | None", whole: int = 3) -> float | None:
    if part is not None and whole > 0:
        return part / whole - 1
    return None
'''


@pytest.fixture(scope="module")
def script(load):
    return load("mutants")


@pytest.fixture
def found(script):
    return [*script.find_mutants(Path("share.py"), MODULE)]


def test_each_changes_the_program_in_one_place(found):
    codes = [mutant.code(MODULE) for mutant in found]
    assert len(set(codes)) == len(codes) > 10
    for mutant, code in zip(found, codes, strict=True):
        assert ast.dump(ast.parse(code)) != ast.dump(ast.parse(MODULE))
        assert [a == b for a, b in zip(code.splitlines(), MODULE.splitlines(), strict=True)].count(False) == 1
        assert code.splitlines()[mutant.place[0] - 1] != MODULE.splitlines()[mutant.place[0] - 1]


def test_hints_sentences_and_operators_of_another_kind_are_left_out(found):
    lines = {mutant.code(MODULE).splitlines()[mutant.place[0] - 1].strip() for mutant in found}
    assert {"return part * whole - 1", "if part is not None or whole > 0:", "return part / whole - 2"} <= {
        " ".join(line.split()) for line in lines
    }
    assert not any("int |" not in line for line in lines if line.startswith("def"))
    assert not any(sign in line for line in lines for sign in (" ^ ", "whole is "))


def test_a_sample_is_that_of_its_seed_and_takes_no_place_twice(script, found):
    drawn = script.draw(found, 4, seed=1)
    assert drawn == script.draw(found, 4, seed=1) != script.draw(found, 4, seed=2)
    assert len({mutant.place for mutant in drawn}) == 4
    assert len(script.draw(found, 1000, seed=1)) == len({mutant.place for mutant in found})


def test_a_mistake_is_shown_to_the_tests_of_its_module_first(script):
    first = script.tests_of(Path("src/stcl/ops/warp.py"))
    assert first[0] == "tests/ops/test_warp.py" and "tests/methods/test_stcl.py" in first
    for file in first:
        assert (ROOT / file).is_file()
