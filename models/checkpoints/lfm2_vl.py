"""LFM2-VL (`model_type` lfm2_vl): an LFM2 decoder under `model.language_model.*`, beside a vision tower and a projector
(`model.vision_tower.*`, `model.multi_modal_projector.*`, read by the encoders)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Piece, Plan
from fluvial.models.checkpoints import lfm2
from fluvial.models.decoder import DecoderConfig


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    """Errors: UnsupportedError for an option with a value that is not implemented."""
    return lfm2.decoder_config(_text(config))


def plan(config: dict[str, Any]) -> Plan:
    """Where each tensor goes; the tower's are the tower's."""
    of_decoder = lfm2.plan(_text(config))

    def place(name: str) -> Sequence[Piece] | None:
        inner = name.removeprefix("model.language_model.")
        if inner == name:
            return of_decoder(name) if name == "lm_head.weight" else None
        return of_decoder(f"model.{inner}")

    return place


def _text(config: dict[str, Any]) -> dict[str, Any]:
    """The decoder's part; whether the head is tied stands beside it."""
    text: dict[str, Any] = config["text_config"]
    if (kind := text.get("model_type", "lfm2")) != "lfm2":
        raise UnsupportedError(f"LFM2-VL with a decoder of type {kind!r:.80} is not supported yet.")
    return text | {"tie_embedding": config.get("tie_embedding", config.get("tie_word_embeddings", True))}
