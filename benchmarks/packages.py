"""Which packages are here, and which of those that the project asks for are not."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def installed(package: str) -> str | None:
    """Version of a package, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def unfit() -> dict[str, str | None]:
    """What networks, training and tests ask for: None where it is missing, or the version that is not in the range."""
    from packaging.requirements import Requirement

    project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(words) for words in (*project["dependencies"], *extras["networks"], *extras["dev"])]
    found = [(need, installed(need.name)) for need in wanted if need.name != project["name"]]
    return {
        need.name: None if here is None else f"{here} (wanted: {need.specifier})"
        for need, here in found
        if here is None or not need.specifier.contains(here, prereleases=True)
    }
