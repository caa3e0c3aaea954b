"""Published families: a file named after `model_type` reads its config and its tensor names, nothing else.

`decoder_config` turns a config.json into a block list; `plan` says where each tensor on disk goes. A family's file is
imported when a checkpoint asks for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from typing import Any, Protocol

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Plan
from fluvial.models.decoder import DecoderConfig


class Family(Protocol):
    """What a family's module offers."""

    def decoder_config(self, config: dict[str, Any]) -> DecoderConfig: ...
    def plan(self, config: dict[str, Any]) -> Plan: ...


def supported() -> list[str]:
    """Every `model_type` that loads."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))


def family(model_type: str) -> Family:
    """The family's module; raises `UnsupportedError` that lists the supported ones."""
    if model_type not in supported():
        raise UnsupportedError(
            f"Models of type '{model_type}' are not supported yet.", hint=f"Supported: {', '.join(supported())}."
        )
    module: Any = importlib.import_module(f"{__name__}.{model_type}")
    return module
