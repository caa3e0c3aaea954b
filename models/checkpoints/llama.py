"""Llama 2 and 3 (`model_type` llama), and the many models published in its layout: no q/k norm, no windows."""

from __future__ import annotations

from typing import Any

from fluvial.adapters.weights import Plan
from fluvial.models.checkpoints._transformer import heads, is_tied, rope, transformer, transformer_plan
from fluvial.models.decoder import DecoderConfig


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    bias = bool(config.get("attention_bias", False))
    attention = {**heads(config), **rope(config), "bias": bias, "out_bias": bias}
    return transformer(config, lambda i: attention, tied=False)


def plan(config: dict[str, Any]) -> Plan:
    return transformer_plan(is_tied(config, False))
