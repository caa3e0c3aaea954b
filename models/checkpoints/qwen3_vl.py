"""Qwen3-VL, dense (`model_type` qwen3_vl): Qwen3 with positions on three axes, under `model.language_model.*`.

Beside it lies a vision tower (`model.visual.*`, read by the encoders), whose inner blocks speak to the first layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Piece, Plan
from fluvial.models.checkpoints._transformer import epsilon, heads, transformer, transformer_plan
from fluvial.models.checkpoints.qwen3_5 import mrope, text_of, tied
from fluvial.models.decoder import DecoderConfig


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    """Errors: UnsupportedError for an option that is not implemented."""
    text = text_of(config)
    for option in ("num_experts", "use_sliding_window"):
        if text.get(option):
            raise UnsupportedError(f"{config['model_type']} with {option} = {text[option]!r:.80} is not supported yet.")
    bias, rotary = bool(text.get("attention_bias", False)), mrope(text, (24, 20, 20), 1.0, 500000.0)
    attention = {**heads(text, d_head=128), **rotary, "bias": bias, "out_bias": bias}
    attention |= {"qk_norm": "rms", "norm_eps": epsilon(text)}
    rest = {"rope_parameters": None, "rope_scaling": None, "partial_rotary_factor": rotary["rotary"]}
    decoder = transformer(text | rest | {"tie_word_embeddings": tied(config)}, lambda i: attention, tied=False)
    deep = (config.get("vision_config") or {}).get("deepstack_visual_indexes") or ()
    if len(deep) > text["num_hidden_layers"]:
        raise ValueError(f"{len(deep)} deepstack_visual_indexes for {text['num_hidden_layers']} layers")
    return replace(decoder, deepstack=tuple(2 * i + 1 for i in range(len(deep))))  # behind each layer's feed-forward


def plan(config: dict[str, Any]) -> Plan:
    """Where each tensor goes; the tower's are the tower's."""
    inner = transformer_plan(tied(config))

    def place(name: str) -> Sequence[Piece] | None:
        if name.startswith("model.") and not name.startswith("model.language_model."):
            return None
        return inner(name.replace("model.language_model.", "model.", 1))

    return place
