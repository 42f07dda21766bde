from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from scripts import BENCHMARKS, scripts_of


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[[str], ModuleType]]:
    """``load("memory")``: a script of `benchmarks/` as a module."""
    with scripts_of(BENCHMARKS) as load:
        yield load
