"""Optical flow behind one convention (:class:`stcl.types.FlowProvider`). A new provider is a file and a line below."""

import inspect
from pathlib import Path
from typing import Any

from stcl.errors import SettingError, lookup, unknown_name
from stcl.flow.cache import CachedFlow, SignedFlow
from stcl.flow.dis import DisFlow
from stcl.flow.exact import ExactFlow
from stcl.flow.files import FilesFlow
from stcl.flow.fill import precompute
from stcl.flow.raft import RaftFlow
from stcl.flow.zero import ZeroFlow

FLOWS: dict[str, type[SignedFlow]] = {
    "dis": DisFlow,
    "raft": RaftFlow,
    "files": FilesFlow,
    "exact": ExactFlow,
    "zero": ZeroFlow,
}
"""Every flow provider by name."""

ESTIMATED = ("dis", "raft")
"""Those that compute flow from images, so that a cache spares work; the others read it or know it."""


def get_flow(name: str, cache: str | Path | None = None, **settings: Any) -> SignedFlow:
    """A flow provider with its settings; with ``cache``, its results are kept in that folder."""
    provider = lookup(FLOWS, name, "flow provider")
    known = inspect.signature(provider).parameters
    for setting in settings:
        if setting not in known:
            raise SettingError(unknown_name(f"setting of flow '{name}'", setting, ["cache", *known]))
    flow = provider(**settings)
    return flow if cache is None else CachedFlow(flow, cache)


__all__ = ["ESTIMATED", "FLOWS", "CachedFlow", "SignedFlow", "get_flow", "precompute"]
