"""Granite 4 (`model_type` granitemoehybrid), dense models: Mamba-2 and softmax attention, and four multipliers.

Embeddings, what a block adds, attention scores and logits are each multiplied by a number from the config (logits are
divided). The feed-forward is the "shared" expert: gate and up projection lie in one matrix.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Plan
from fluvial.models.checkpoints._hybrid import FULL, LINEAR, Row, layers, number, planned, ssd, ssd_rows, whole_rope
from fluvial.models.checkpoints._transformer import epsilon, heads, is_tied
from fluvial.models.checkpoints.mamba import only
from fluvial.models.decoder import BlockConfig, DecoderConfig


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    """Errors: UnsupportedError for experts, or an option with a value that is not implemented."""
    if experts := config.get("num_local_experts", 8):
        raise UnsupportedError(
            f"granitemoehybrid with experts (num_local_experts = {experts}) is not supported yet.",
            hint="Use a dense model of the family.",
        )
    only(config, hidden_act=("silu", "swish"), position_embedding_type=("rope", "nope"))
    only(config, normalization_function=("rmsnorm",))
    d_model, count, eps = config["hidden_size"], config["num_hidden_layers"], epsilon(config)
    bias = bool(config.get("attention_bias", False))
    rotates = config.get("position_embedding_type") == "rope"
    attention = {
        **heads(config),
        **(whole_rope(config) if rotates else {"rotary": 0.0}),
        "bias": bias,
        "out_bias": bias,
        "scale": number(config, "attention_multiplier"),
    }
    scale, d_inner = number(config, "residual_multiplier"), int(config.get("mamba_expand", 2) * d_model)
    kinds, blocks = layers(config, (LINEAR, FULL), [LINEAR] * count), list[BlockConfig]()
    for kind in kinds:
        blocks += [
            BlockConfig("attention", attention, scale)
            if kind == FULL
            else BlockConfig("mamba2", ssd(config, d_inner, eps), scale),
            BlockConfig("swiglu", {"d_ff": config.get("shared_intermediate_size", 1024)}, scale),
        ]
    return DecoderConfig(
        vocab=config["vocab_size"],
        d_model=d_model,
        blocks=tuple(blocks),
        norm_eps=eps,
        tied_head=is_tied(config, False),
        embed_scale=number(config, "embedding_multiplier"),
        logit_scale=1 / number(config, "logits_scaling"),
    )


def _gate(fused: Tensor) -> Tensor:
    return fused.chunk(2)[0]


def _up(fused: Tensor) -> Tensor:
    return fused.chunk(2)[1]


_WHOLE = {"model.embed_tokens.weight": "embedding.weight", "model.norm.weight": "norm.gain"}
_LAYER: list[Row] = [
    (r"input_layernorm\.weight", 0, "norm.gain"),
    *ssd_rows(),
    (r"self_attn\.([qkvo]_proj\.(?:weight|bias))", 0, r"mixer.\1"),
    (r"post_attention_layernorm\.weight", 1, "norm.gain"),
    (r"shared_mlp\.input_linear\.weight", 1, "mixer.gate_proj.weight", _gate),
    (r"shared_mlp\.input_linear\.weight", 1, "mixer.up_proj.weight", _up),
    (r"shared_mlp\.output_linear\.weight", 1, "mixer.down_proj.weight"),
]


def plan(config: dict[str, Any]) -> Plan:
    return planned(_WHOLE, lambda i: _LAYER, tied=is_tied(config, False))
