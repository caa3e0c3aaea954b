"""Pebble (`model_type` pebble): the bundled family. Its config lists the decoder's blocks; tensors are `model.*`."""

from __future__ import annotations

from typing import Any

from fluvial.adapters.weights import Piece, Plan
from fluvial.models.decoder import BlockConfig, DecoderConfig


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    text = config["text_config"]
    blocks = tuple(
        BlockConfig(block["kind"], {name: value for name, value in block.items() if name != "kind"})
        for block in text["blocks"]
    )
    return DecoderConfig(
        vocab=text["vocab_size"],
        d_model=text["hidden_size"],
        blocks=blocks,
        norm=text["norm"],
        norm_eps=text["norm_eps"],
        tied_head=text["tie_word_embeddings"],
    )


def plan(config: dict[str, Any]) -> Plan:
    return lambda name: [Piece(name.removeprefix("model."))] if name.startswith("model.") else None
