"""Adaptation methods: one file a method, each reading like the paper's algorithm."""

from stcl.errors import lookup
from stcl.methods.base import AdaptationMethod, DomainBatch
from stcl.methods.dacs import DACS
from stcl.methods.settings import Optimization, Preparation
from stcl.methods.source_only import SourceOnly
from stcl.methods.stcl import STCL
from stcl.methods.tps import TPS

METHODS: dict[str, type[AdaptationMethod]] = {
    "source_only": SourceOnly,
    "tps": TPS,
    "dacs": DACS,
    "stcl": STCL,
}
"""Every method by name."""


def get_method(name: str) -> type[AdaptationMethod]:
    """The method class called ``name``; an unknown name lists the right ones."""
    return lookup(METHODS, name, "method")


__all__ = ["METHODS", "AdaptationMethod", "DomainBatch", "Optimization", "Preparation", "get_method"]
