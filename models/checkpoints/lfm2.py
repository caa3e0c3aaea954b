"""LFM2 (`model_type` lfm2): gated short convolutions, and softmax attention with q/k norms in some layers.

The published `intermediate_size` is not the feed-forward's width where `block_auto_adjust_ff_dim` is set: two thirds of
it, times a multiplier, rounded up. The first releases say `block_ff_dim`, `tie_embedding` and `full_attn_idxs`.
"""

from __future__ import annotations

from typing import Any

from fluvial.adapters.weights import Plan
from fluvial.models.checkpoints._hybrid import FULL, Row, flat, layers, planned, whole_rope
from fluvial.models.checkpoints._transformer import epsilon, heads
from fluvial.models.checkpoints.mamba import only
from fluvial.models.decoder import BlockConfig, DecoderConfig


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    """Errors: UnsupportedError for an option with a value that is not implemented."""
    d_model, count = config["hidden_size"], config["num_hidden_layers"]
    only(config, conv_dim=(d_model,), conv_dim_out=(d_model,), block_dim=(d_model,))
    only(config, block_use_swiglu=(True,), use_pos_enc=(True,))
    eps = epsilon({"rms_norm_eps": config.get("norm_eps", 1e-5)})
    attention = {**heads(config), **whole_rope(config, theta=1e6), "qk_norm": "rms", "norm_eps": eps}
    mixers = {
        "conv": BlockConfig(
            "short_conv", {"conv": config.get("conv_L_cache", 3), "bias": config.get("conv_bias", False)}
        ),
        FULL: BlockConfig("attention", attention),
    }
    full = config.get("full_attn_idxs")
    default = [FULL if full is None or i in full else "conv" for i in range(count)]
    blocks: list[BlockConfig] = []
    for kind in layers(config, mixers, default):
        blocks += [mixers[kind], BlockConfig("swiglu", {"d_ff": _width(config)})]
    return DecoderConfig(config["vocab_size"], d_model, tuple(blocks), norm_eps=eps, tied_head=_tied(config))


def _width(config: dict[str, Any]) -> int:
    """The feed-forward's."""
    width: int = config.get("block_ff_dim", config.get("intermediate_size", 12288))
    if not config.get("block_auto_adjust_ff_dim", True):
        return width
    width = int(2 * width / 3)
    factor, multiple = config.get("block_ffn_dim_multiplier", 1.0), config.get("block_multiple_of", 256)
    return width if factor is None else -(-int(factor * width) // multiple) * multiple


def _tied(config: dict[str, Any]) -> bool:
    return bool(config.get("tie_embedding", config.get("tie_word_embeddings", True)))


_WHOLE = {"model.embed_tokens.weight": "embedding.weight", "model.embedding_norm.weight": "norm.gain"}
_LAYER: list[Row] = [
    (r"operator_norm\.weight", 0, "norm.gain"),
    (r"conv\.((?:in|out)_proj\.(?:weight|bias))", 0, r"mixer.\1"),
    (r"conv\.conv\.weight", 0, "mixer.conv.taps", flat),
    (r"conv\.conv\.bias", 0, "mixer.conv.bias"),
    (r"self_attn\.([qkv]_proj)\.weight", 0, r"mixer.\1.weight"),
    (r"self_attn\.out_proj\.weight", 0, "mixer.o_proj.weight"),
    (r"self_attn\.([qk])_layernorm\.weight", 0, r"mixer.\1_norm.gain"),
    (r"ffn_norm\.weight", 1, "norm.gain"),
    (r"feed_forward\.w1\.weight", 1, "mixer.gate_proj.weight"),
    (r"feed_forward\.w3\.weight", 1, "mixer.up_proj.weight"),
    (r"feed_forward\.w2\.weight", 1, "mixer.down_proj.weight"),
]


def plan(config: dict[str, Any]) -> Plan:
    return planned(_WHOLE, lambda i: _LAYER, tied=_tied(config))
