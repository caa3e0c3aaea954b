"""Qwen2 and Qwen2.5 (`model_type` qwen2): biases on q, k and v always, sliding windows in upper layers on demand."""

from __future__ import annotations

from typing import Any

from fluvial.adapters.weights import Plan
from fluvial.models.checkpoints._transformer import heads, is_tied, rope, transformer, transformer_plan, windows
from fluvial.models.decoder import DecoderConfig


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    attention = {**heads(config), **rope(config), "bias": True}
    window = windows(config, lambda i: i >= config.get("max_window_layers", 28))
    return transformer(config, lambda i: {**attention, "window": window[i]}, tied=False)


def plan(config: dict[str, Any]) -> Plan:
    return transformer_plan(is_tied(config, False))
