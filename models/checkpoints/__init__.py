"""Published families: a file named after `model_type` reads its config and its tensor names, nothing else.

`decoder_config` turns a config.json into a block list; `plan` says where each tensor on disk goes. A family's file is
imported when a checkpoint asks for it. Files that start with an underscore hold what families share.

Two kinds of original release say no `model_type`: `identified` and `inferred` know them by what they do say.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Plan
from fluvial.models.decoder import DecoderConfig
from fluvial.models.mtp import Mtp


class Family(Protocol):
    """What a family's module offers."""

    def decoder_config(self, config: dict[str, Any]) -> DecoderConfig: ...
    def plan(self, config: dict[str, Any]) -> Plan: ...


def supported() -> list[str]:
    """Every `model_type` that loads."""
    names = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in names if not name.startswith("_"))


def family(model_type: str) -> Family:
    """The family's module; raises `UnsupportedError` that lists the supported ones."""
    if model_type not in supported():
        raise UnsupportedError(
            f"Models of type '{model_type}' are not supported yet.", hint=f"Supported: {', '.join(supported())}."
        )
    module: Any = importlib.import_module(f"{__name__}.{model_type}")
    return module


def draft_head(config: dict[str, Any]) -> tuple[Mtp, Plan] | None:
    """A head for drafting that the family publishes beside the decoder, without weights, and where its tensors go; None
    for a family without one. A folder may lack it all the same: fine-tunes often do."""
    make = getattr(family(config["model_type"]), "draft_head", None)
    found: tuple[Mtp, Plan] | None = None if make is None else make(config)
    return found


def identified(config: dict[str, Any]) -> dict[str, Any]:
    """The config with its `model_type`, which the original state-spaces releases (Mamba, Mamba-2) leave out and the
    first LFM2-VL spells otherwise."""
    from fluvial.models.checkpoints.mamba import is_original

    if config.get("model_type") == "lfm2-vl":
        return {**config, "model_type": "lfm2_vl"}
    if "model_type" in config or not is_original(config):
        return config
    layer = (config.get("ssm_cfg") or {}).get("layer", "Mamba1")
    return {**config, "model_type": "mamba2" if layer == "Mamba2" else "mamba"}


def inferred(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The config of weights that come without one: RWKV's official files. Errors: IntegrityError for others."""
    from fluvial.models.checkpoints import rwkv7

    return rwkv7.inferred(shapes)
