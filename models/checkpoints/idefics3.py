"""Idefics3 (`model_type` idefics3; SmolVLM too was published so): a Llama under `model.text_model.*`.

Beside it stand a SigLIP tower and one matrix, `model.vision_model.*` and `model.connector.*`, which the encoders read.
A nested config leaves out what is as in Llama's own defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Piece, Plan
from fluvial.models.checkpoints import llama
from fluvial.models.decoder import DecoderConfig

_TEXT = "model.text_model."
_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
}


def text_of(config: dict[str, Any]) -> dict[str, Any]:
    """The decoder's part of a config, whole. Errors: UnsupportedError for another decoder than Llama."""
    text = config["text_config"]
    if (kind := text.get("model_type", "llama")) != "llama":
        raise UnsupportedError(f"{config['model_type']} with a {kind!r:.40} decoder is not supported yet.")
    return {**_LLAMA, **text, "tie_word_embeddings": bool(config.get("tie_word_embeddings", False))}


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    """Errors: UnsupportedError for an option with a value that is not implemented."""
    return llama.decoder_config(text_of(config))


def plan(config: dict[str, Any]) -> Plan:
    """Where each tensor of the decoder goes; the tower's tensors are the tower's."""
    place = llama.plan(text_of(config))

    def nested(name: str) -> Sequence[Piece] | None:
        if name == "lm_head.weight":
            return place(name)
        return place("model." + name.removeprefix(_TEXT)) if name.startswith(_TEXT) else None

    return nested
