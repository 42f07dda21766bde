"""Which backbones the tests of the contract run over."""

from typing import Any

import pytest

from stcl.models import BACKBONES

FURTHER = ("resnet50", "resnet101")
"""Sizes that are made of other blocks than the first one of their class, or that papers were written with."""


def kinds() -> list[str]:
    """The first name of each class in the registry, which is its smallest, and :data:`FURTHER`."""
    first: dict[Any, str] = {}
    for name, builder in BACKBONES.items():
        first.setdefault(getattr(builder, "func", builder), name)
    return [*first.values(), *FURTHER]


@pytest.fixture(scope="session", params=kinds())
def kind(request: pytest.FixtureRequest) -> str:
    """Name of one backbone of each kind."""
    return request.param
