"""SmolLM3 (`model_type` smollm3): a Llama in which some layers have no positions, every fourth by default.

`no_rope_layers[i]` is 1 where layer i has positions, 0 where it has none: the name says the opposite.
"""

from __future__ import annotations

from typing import Any

from fluvial.adapters.weights import Plan
from fluvial.models.checkpoints._transformer import heads, is_tied, rope, transformer, transformer_plan, windows
from fluvial.models.decoder import DecoderConfig


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    count, interval = config["num_hidden_layers"], config.get("no_rope_layer_interval", 4)
    rotates = config.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(count)]
    if len(rotates) < count:
        raise ValueError(f"no_rope_layers names {len(rotates)} of {count} layers")
    bias = bool(config.get("attention_bias", False))
    attention = {**heads(config), **rope(config, theta=2e6), "bias": bias, "out_bias": bias}
    window = windows(config, lambda i: not rotates[i])

    def options(i: int) -> dict[str, Any]:
        return {**attention, "window": window[i], **({} if rotates[i] else {"rotary": 0.0})}

    return transformer(config, options, tied=True)


def plan(config: dict[str, Any]) -> Plan:
    return transformer_plan(is_tied(config, True))
