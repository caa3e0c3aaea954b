"""Qwen3, dense (`model_type` qwen3): q/k norm over each head, an explicit head width, a sliding window on demand."""

from __future__ import annotations

from typing import Any

from fluvial.adapters.weights import Plan
from fluvial.models.checkpoints._transformer import (
    epsilon,
    heads,
    is_tied,
    rope,
    transformer,
    transformer_plan,
    windows,
)
from fluvial.models.decoder import DecoderConfig


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    bias = bool(config.get("attention_bias", False))
    attention = {**heads(config, d_head=128), **rope(config), "bias": bias, "out_bias": bias}
    attention |= {"qk_norm": "rms", "norm_eps": epsilon(config)}
    window = windows(config, lambda i: i >= config.get("max_window_layers", 28))
    return transformer(config, lambda i: {**attention, "window": window[i]}, tied=False)


def plan(config: dict[str, Any]) -> Plan:
    return transformer_plan(is_tied(config, False))
