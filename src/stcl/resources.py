"""Files that come with the package: configurations and weights.

In a checkout (and after ``pip install -e .``) the configurations lie in ``configs/`` beside ``src/``; a wheel carries
them as ``stcl/configs/``. Weights lie in ``stcl/weights/`` in both. Nobody else needs to know.
"""

from pathlib import Path

from stcl.errors import SettingError, unknown_name

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parents[1]


def config_folder() -> Path:
    """Folder of the built-in configurations."""
    packaged = _PACKAGE / "configs"
    return packaged if packaged.is_dir() else _CHECKOUT / "configs"


def list_configs() -> list[str]:
    """Names of the built-in configurations: paths below the folder, without ``.yaml``."""
    return [name for name in _names(config_folder(), ".yaml") if not name.startswith(("presets/", "arena/"))]


def config_path(name: str | Path) -> Path:
    """Path of a configuration: a YAML file of your own, or the name of a built-in one.

    Args:
        name: ``path/to/own.yaml``, or a name of :func:`list_configs` (with or without ``.yaml``).
    """
    own = Path(name)
    if own.suffix in (".yaml", ".yml") and own.exists():
        return own
    return _find(config_folder(), list_configs(), str(name), ".yaml", "configuration")


def list_arenas() -> list[str]:
    """Names of the arenas that come with the package, e.g. ``arena/demo``."""
    return [f"arena/{name}" for name in _names(config_folder() / "arena", ".yaml")]


def arena_path(name: str | Path) -> Path:
    """Path of an arena's file: a YAML file of your own, or one of :func:`list_arenas`."""
    own = Path(name)
    if own.exists() and not own.is_dir():
        return own
    return _find(config_folder(), list_arenas(), str(name), ".yaml", "arena")


def list_presets() -> list[str]:
    """Names of the presets: what fits on a card of so much memory, the smallest first."""
    return sorted(_names(config_folder() / "presets", ".yaml"), key=lambda name: (len(name), name))


def preset_path(name: str) -> Path:
    """Path of a preset, a part of a configuration; ``name`` is one of :func:`list_presets`."""
    return _find(config_folder() / "presets", list_presets(), name, ".yaml", "preset", own=False)


def list_weights() -> list[str]:
    """Names of the weights that come with the package, without ``.safetensors``."""
    return _names(_PACKAGE / "weights", ".safetensors")


def weights_path(name: str | Path) -> Path:
    """Path of a weights file: one of your own, or the name of one that comes with the package.

    Args:
        name: ``path/to/own.safetensors``, or a name of :func:`list_weights` (with or without ``.safetensors``).
    """
    own = Path(name)
    if own.suffix == ".safetensors" and own.exists():
        return own
    return _find(_PACKAGE / "weights", list_weights(), str(name), ".safetensors", "weights file")


def _names(folder: Path, suffix: str) -> list[str]:
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob(f"*{suffix}"))


def _find(folder: Path, known: list[str], name: str, suffix: str, kind: str, own: bool = True) -> Path:
    stem = name.removesuffix(suffix)
    if stem not in known:
        listed = unknown_name(kind, name, known) if known else f"Unknown {kind} '{name}': none comes with this install."
        raise SettingError(listed + (f" A path to a {suffix} file of your own works too." if own else ""))
    return folder / f"{stem}{suffix}"
