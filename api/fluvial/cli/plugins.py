"""Plugins as they are named on a command line: PATH or NAME, with =WEIGHT where several are blended."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from fluvial.adapters.errors import UsageError
from fluvial.cli.console import warn

if TYPE_CHECKING:
    from fluvial.engine.engine import Engine


def weighted(spec: str) -> tuple[str, float]:
    """PATH_OR_NAME[=WEIGHT] as its two parts; a weight of 1 where none is given."""
    name, equals, weight = spec.rpartition("=")
    if not equals or Path(spec).expanduser().exists():
        return spec, 1.0
    try:
        return name, float(weight)
    except ValueError:
        raise UsageError(f"The weight of plugin '{name}' is '{weight}'.", "It must be a number.") from None


def blend(engine: Engine, specs: Iterable[str]) -> dict[str, float]:
    """Loads what is named and not loaded yet. A name is that of a loaded plugin, or of a folder in the model's own
    `plugins`. Returns weights by name."""
    chosen: dict[str, float] = {}
    for spec in specs:
        where, weight = weighted(spec)
        name = where if where in engine.plugins else _loaded(engine, where)
        chosen[name] = chosen.get(name, 0.0) + weight
    return chosen


def _loaded(engine: Engine, where: str) -> str:
    from fluvial.engine.plugin_folders import OWN

    path, own = Path(where).expanduser(), engine.model.folder / OWN / where
    if not path.exists() and own.exists():
        path = own
    name = path.name.removesuffix(".safetensors")
    known = [info for info in engine.plugins.list() if info.name == name and info.path != path]
    info = engine.plugins.load(path, str(path) if known else name)
    for warning in info.warnings:
        warn(f"{info.name}: {warning}")
    return info.name
