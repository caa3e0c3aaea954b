"""Bamba (`model_type` bamba): Mamba-2, with softmax attention in the layers that `attn_layer_indices` lists.

Half of each attention head turns, whatever a config says beside its `rope_parameters`.
"""

from __future__ import annotations

from typing import Any

from fluvial.adapters.weights import Plan
from fluvial.models.checkpoints._hybrid import Row, planned, ssd, ssd_rows
from fluvial.models.checkpoints._transformer import epsilon, heads, is_tied, rope
from fluvial.models.checkpoints.mamba import only
from fluvial.models.decoder import BlockConfig, DecoderConfig


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    """Errors: UnsupportedError for an option with a value that is not implemented."""
    only(config, hidden_act=("silu", "swish"))
    d_model, eps = config["hidden_size"], epsilon({"rms_norm_eps": 1e-5, **config})
    bias = bool(config.get("attention_bias", False))
    options = heads({"num_key_value_heads": 8, **config}) | rope({**config, "partial_rotary_factor": 0.5})
    attention = BlockConfig("attention", options | {"bias": bias, "out_bias": bias})
    mamba = BlockConfig("mamba2", ssd(config, int(config.get("mamba_expand", 2) * d_model), eps))
    swiglu = BlockConfig("swiglu", {"d_ff": config["intermediate_size"], "bias": config.get("mlp_bias", False)})
    blocks: list[BlockConfig] = []
    for i in range(config["num_hidden_layers"]):
        blocks += [attention if i in (config.get("attn_layer_indices") or ()) else mamba, swiglu]
    return DecoderConfig(config["vocab_size"], d_model, tuple(blocks), norm_eps=eps, tied_head=is_tied(config, False))


_WHOLE = {"model.embed_tokens.weight": "embedding.weight", "model.final_layernorm.weight": "norm.gain"}
_LAYER: list[Row] = [
    (r"input_layernorm\.weight", 0, "norm.gain"),
    *ssd_rows(),
    (r"self_attn\.([qkvo]_proj\.(?:weight|bias))", 0, r"mixer.\1"),
    (r"pre_ff_layernorm\.weight", 1, "norm.gain"),
    (r"feed_forward\.((?:gate|up|down)_proj\.(?:weight|bias))", 1, r"mixer.\1"),
]


def plan(config: dict[str, Any]) -> Plan:
    return planned(_WHOLE, lambda i: _LAYER, tied=is_tied(config, False))
