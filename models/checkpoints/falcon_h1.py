"""Falcon-H1 (`model_type` falcon_h1): SSD and softmax attention side by side in every layer, then a feed-forward.

Multipliers from the config act on embeddings, logits, the input and output of either branch, keys (which is the same
as on scores), the five parts of SSD's projection, the feed-forward's gate and its output.
"""

from __future__ import annotations

from typing import Any

from fluvial.adapters.weights import Plan
from fluvial.models.checkpoints._hybrid import Row, number, planned, ssd, ssd_rows, whole_rope
from fluvial.models.checkpoints._transformer import epsilon, heads, is_tied
from fluvial.models.checkpoints.mamba import only
from fluvial.models.decoder import BlockConfig, DecoderConfig


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    """Errors: UnsupportedError for an option with a value that is not implemented."""
    only(config, hidden_act=("silu", "swish"))
    d_model, eps = config["hidden_size"], epsilon({"rms_norm_eps": 1e-5, **config})
    branches = {
        "ssd": {
            "kind": "mamba2",
            "options": _ssd(config, eps),
            "scale_in": number(config, "ssm_in_multiplier"),
            "scale_out": number(config, "ssm_out_multiplier"),
        },
        "attention": {
            "kind": "attention",
            "options": _attention(config),
            "scale_in": number(config, "attention_in_multiplier"),
            "scale_out": number(config, "attention_out_multiplier"),
        },
    }
    gate, down = _numbers(config, "mlp_multipliers", 2)
    options = {"d_ff": config["intermediate_size"], "bias": config.get("mlp_bias", False)}
    scaled = {} if gate == 1 else {"gate_scale": gate}
    layer = (
        BlockConfig("parallel", {"branches": branches}),
        BlockConfig("swiglu", options | scaled, down),
    )
    return DecoderConfig(
        vocab=config["vocab_size"],
        d_model=d_model,
        blocks=layer * config["num_hidden_layers"],
        norm_eps=eps,
        tied_head=is_tied(config, False),
        embed_scale=number(config, "embedding_multiplier"),
        logit_scale=number(config, "lm_head_multiplier"),
    )


def _ssd(config: dict[str, Any], eps: float) -> dict[str, Any]:
    d_inner = config.get("mamba_d_ssm", 1024)
    d_inner = int(config.get("mamba_expand", 2) * config["hidden_size"]) if d_inner is None else d_inner
    scales = _numbers(config, "ssm_multipliers", 5)
    normed = "before" if config.get("mamba_norm_before_gate", True) else "after"
    return ssd(config, d_inner, eps) | {
        "out_bias": config.get("projectors_bias", False),
        "norm": normed if config.get("mamba_rms_norm", False) else "none",
        "scales": () if set(scales) == {1.0} else scales,
    }


def _attention(config: dict[str, Any]) -> dict[str, Any]:
    options, bias = heads({"num_key_value_heads": 8, **config}), config.get("attention_bias", False)
    scale = number(config, "key_multiplier") * options["d_head"] ** -0.5
    return {**options, **whole_rope(config), "bias": bias, "out_bias": bias, "scale": scale}


def _numbers(config: dict[str, Any], option: str, count: int) -> tuple[float, ...]:
    values = tuple(float(value) for value in config.get(option) or (1.0,) * count)
    if len(values) != count:
        raise ValueError(f"{option} has {len(values)} numbers, not {count}")
    return values


_WHOLE = {"model.embed_tokens.weight": "embedding.weight", "model.final_layernorm.weight": "norm.gain"}
_LAYER: list[Row] = [
    (r"input_layernorm\.weight", 0, "norm.gain"),
    *ssd_rows("mixer.branches.ssd"),
    (r"self_attn\.([qkvo]_proj\.(?:weight|bias))", 0, r"mixer.branches.attention.\1"),
    (r"pre_ff_layernorm\.weight", 1, "norm.gain"),
    (r"feed_forward\.((?:gate|up|down)_proj\.(?:weight|bias))", 1, r"mixer.\1"),
]


def plan(config: dict[str, Any]) -> Plan:
    return planned(_WHOLE, lambda i: _LAYER, tied=is_tied(config, False))
