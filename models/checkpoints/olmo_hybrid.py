"""OLMo-hybrid (`model_type` olmo_hybrid): Gated DeltaNet in three of four layers, softmax attention in the fourth.

The delta layers norm what they read, the attention layers what they add. q, k and v have a convolution each; beta
reaches 2; q and k are normed over all heads at once; no positions where `rope_theta` is null, as published.
"""

from __future__ import annotations

from typing import Any

from fluvial.adapters.weights import Plan
from fluvial.models.checkpoints._hybrid import FULL, LINEAR, Row, flat, layers, planned, whole_rope
from fluvial.models.checkpoints._transformer import epsilon, heads, is_tied
from fluvial.models.checkpoints.mamba import only
from fluvial.models.decoder import BlockConfig, DecoderConfig


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    """Errors: UnsupportedError for an option with a value that is not implemented."""
    only(config, hidden_act=("silu", "swish"), linear_use_gate=(True,))
    d_model, eps = config["hidden_size"], epsilon(config)
    bias = bool(config.get("attention_bias", False))
    attention = {
        **heads(config),
        **(whole_rope(config) if _rotates(config) else {"rotary": 0.0}),
        "bias": bias,
        "out_bias": bias,
        "qk_norm": "whole",
        "norm_eps": eps,
    }
    blocks: list[BlockConfig] = []
    for kind in _layers(config):
        mixer = ("attention", attention) if kind == FULL else ("gated_delta", _delta(config))
        swiglu = ("swiglu", {"d_ff": config["intermediate_size"]})
        blocks += [BlockConfig(*inner, norm_after=kind == FULL) for inner in (mixer, swiglu)]
    return DecoderConfig(config["vocab_size"], d_model, tuple(blocks), norm_eps=eps, tied_head=is_tied(config, False))


def _delta(config: dict[str, Any]) -> dict[str, Any]:
    count = config["num_attention_heads"]
    k_heads = config.get("linear_num_key_heads") or count
    d_k = config.get("linear_key_head_dim") or int(0.75 * config["hidden_size"] / k_heads)
    return {
        "heads": config.get("linear_num_value_heads") or count,
        "k_heads": k_heads,
        "d_k": d_k,
        "d_v": config.get("linear_value_head_dim") or 2 * d_k,
        "conv": config.get("linear_conv_kernel_dim", 4),
        "beta_scale": 2.0 if config.get("linear_allow_neg_eigval", True) else 1.0,
        "split": True,
        "qk_eps": 1e-6,
        "norm_eps": 1e-5,  # whatever the config says of the other norms
    }


def _layers(config: dict[str, Any]) -> list[str]:
    default = [FULL if i % 4 == 3 else LINEAR for i in range(config["num_hidden_layers"])]
    if default and FULL not in default:
        default[-1] = FULL
    return layers(config, (LINEAR, FULL), default)


def _rotates(config: dict[str, Any]) -> bool:
    """A theta of null means no positions; one that is not given at all is the default."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return given.get("rope_theta", config.get("rope_theta", 10000.0)) is not None


_WHOLE = {"model.embed_tokens.weight": "embedding.weight", "model.norm.weight": "norm.gain"}
_MLP: Row = (r"mlp\.((?:gate|up|down)_proj\.weight)", 1, r"mixer.\1")
_ROWS: dict[str, list[Row]] = {
    LINEAR: [
        (r"(?:input_layernorm|attention_layer_norm)\.weight", 0, "norm.gain"),
        (r"(?:post_attention_layernorm|feedforward_layer_norm)\.weight", 1, "norm.gain"),
        (r"linear_attn\.([qkv]_proj\.weight|A_log|dt_bias)", 0, r"mixer.\1"),
        (r"linear_attn\.([qkv]_conv)1d\.weight", 0, r"mixer.\1.taps", flat),
        (r"linear_attn\.([ab])_proj\.weight", 0, r"mixer.in_proj_\1.weight"),
        (r"linear_attn\.g_proj\.weight", 0, "mixer.in_proj_z.weight"),
        (r"linear_attn\.o_norm\.weight", 0, "mixer.norm.gain"),
        (r"linear_attn\.o_proj\.weight", 0, "mixer.out_proj.weight"),
        _MLP,
    ],
    FULL: [
        # Transformers saves this norm under the name that the other layers have for theirs
        (r"(?:post_attention_layernorm|feedforward_layer_norm)\.weight", 0, "norm.gain"),
        (r"post_feedforward_layernorm\.weight", 1, "norm.gain"),
        (r"self_attn\.([qkvo]_proj\.(?:weight|bias))", 0, r"mixer.\1"),
        (r"self_attn\.([qk]_norm)\.weight", 0, r"mixer.\1.gain"),
        _MLP,
    ],
}


def plan(config: dict[str, Any]) -> Plan:
    kinds = _layers(config)
    inner = planned(_WHOLE, lambda i: _ROWS[kinds[i]] if i < len(kinds) else [], tied=is_tied(config, False))
    return lambda name: [] if name.startswith("mtp.") else inner(name)
