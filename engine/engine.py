"""`Engine`: a loaded model and the sessions on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fluvial.engine.model import Model, load_model
from fluvial.engine.session import Session


class Engine:
    """One model, any number of sessions."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def session(self, *, system: str | None = None) -> Session:
        """A new conversation; `system` is the system prompt."""
        return Session(self.model, system=system)

    def load_session(self, path: str | Path) -> Session:
        """A session that was saved with `Session.save`."""
        return Session.load(self.model, path)

    def explain(self) -> dict[str, Any]:
        """What is on: architecture, state, dtype, device, kernels."""
        return self.model.explain()


def load(name: str | Path = "pebble", *, dtype: str | torch.dtype | None = None, offline: bool = False) -> Engine:
    """An engine on a bundled model ("pebble"), a checkpoint folder or a hub name. Arguments and errors: as
    `load_model`."""
    return Engine(load_model(name, dtype=dtype, offline=offline))
