"""Qwen3.5 (`model_type` qwen3_5): the vision tower of Qwen3-VL, without what that adds to inner layers."""

from __future__ import annotations

from typing import Any

from fluvial.adapters.errors import UnsupportedError
from fluvial.encoders import qwen3_vl
from fluvial.encoders.qwen3_vl import plan
from fluvial.encoders.qwen_vision import QwenVision

__all__ = ["from_config", "plan"]


def from_config(config: dict[str, Any]) -> QwenVision:
    """The tower of a config.json, as `qwen3_vl.from_config`. Errors: UnsupportedError for deepstack."""
    if given := config["vision_config"].get("deepstack_visual_indexes"):
        raise UnsupportedError(f"Qwen3.5 with deepstack_visual_indexes = {given!r:.80} is not supported yet.")
    return qwen3_vl.from_config(config)
