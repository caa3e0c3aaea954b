"""FalconMamba (`model_type` falcon_mamba): Mamba with RMS norms without weights on B, C and the low-rank dt."""

from __future__ import annotations

from typing import Any

from fluvial.adapters.weights import Plan
from fluvial.models.checkpoints.mamba import named, options, stacked
from fluvial.models.decoder import BlockConfig, DecoderConfig


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    block = BlockConfig("mamba", options(config) | {"bcdt_eps": config.get("mixer_rms_eps", 1e-6)})
    return stacked(config, block, tied=True)


def plan(config: dict[str, Any]) -> Plan:
    return named(config.get("tie_word_embeddings", True))
