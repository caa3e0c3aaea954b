"""`Engine`: a loaded model and the sessions on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fluvial.engine.model import Model, load_model
from fluvial.engine.plugins import Choice, Plugins
from fluvial.engine.session import Session


class Engine:
    """One model, any number of sessions."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @property
    def plugins(self) -> Plugins:
        """The plugins of the model: load, verify, unload, list."""
        return self.model.plugins

    def session(self, *, system: str | None = None, plugin: Choice = None) -> Session:
        """A new conversation; `system` is the system prompt. `plugin`: the name of a loaded one, or a blend of several
        with their weights, {"a": 0.7, "b": 0.3}."""
        return Session(self.model, system=system, plugin=plugin)

    def load_session(self, path: str | Path) -> Session:
        """A session that was saved with `Session.save`; plugins that it used must be loaded, with the same content."""
        return Session.load(self.model, path)

    def explain(self) -> dict[str, Any]:
        """What is on: architecture, state, dtype, device, kernels."""
        return self.model.explain()


def load(
    name: str | Path = "pebble",
    *,
    dtype: str | torch.dtype | None = None,
    quant: str | None = None,
    plugins: Mapping[str, str | Path] | None = None,
    offline: bool = False,
) -> Engine:
    """An engine on a bundled model ("pebble"), a checkpoint folder or a hub name. `plugins`: folders by the names that
    sessions use. Other arguments and errors: as `load_model`."""
    engine = Engine(load_model(name, dtype=dtype, quant=quant, offline=offline))
    for plugin, path in (plugins or {}).items():
        engine.plugins.load(path, plugin)
    return engine
