"""Mamba (`model_type` mamba): Transformers' layout, and the original one of the state-spaces repositories.

The original config.json has no `model_type`; it says d_model, n_layer and ssm_cfg (`layer` names the kind), and the
weights are `pytorch_model.bin` with the same tensor names except the embedding's. Its config is rewritten into
Transformers' words here, so that one reading follows. The name table serves Mamba-2 and FalconMamba too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Piece, Plan
from fluvial.models.decoder import BlockConfig, DecoderConfig

INNER = {"conv1d.bias": "conv.bias", "dt_proj.bias": "dt_bias", "norm.weight": "norm.gain"}
OUTER = {
    "backbone.embeddings.weight": "embedding.weight",
    "backbone.embedding.weight": "embedding.weight",
    "backbone.norm_f.weight": "norm.gain",
    "backbone.norm_f.bias": "norm.shift",
    "lm_head.weight": "head.weight",
}
IN_LAYER = re.compile(r"backbone\.layers\.(\d+)\.(norm|mixer)\.(.+)")
NORM = {"weight": "gain", "bias": "shift"}
# what only steers training's first values, or which kernel runs
SILENT = {"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor", "A_init_range", "conv_init"}
SILENT |= {"use_fast_path", "use_mem_eff_path", "chunk_size", "layer_idx", "sequence_parallel", "process_group"}


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    config = translated(config)
    return stacked(config, BlockConfig("mamba", options(config)), tied=True)


def options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The mixer's options, from Transformers' words."""
    only(config, hidden_act=("silu", "swish"))
    d_model, rank = config["hidden_size"], config.get("time_step_rank", "auto")
    return {
        # FalconMamba 7B says expand 16 beside the true intermediate_size, which therefore goes first
        "d_inner": config.get("intermediate_size") or int(config.get("expand", 2) * d_model),
        "d_state": config.get("state_size", 16),
        "rank": math.ceil(d_model / 16) if rank == "auto" else rank,
        "conv": config.get("conv_kernel", 4),
        "conv_bias": config.get("use_conv_bias", True),
        "bias": config.get("use_bias", False),
    }


def stacked(config: Mapping[str, Any], block: BlockConfig, *, tied: bool) -> DecoderConfig:
    """The same block n times. `tied`: the family's default."""
    return DecoderConfig(
        vocab=config["vocab_size"],
        d_model=config["hidden_size"],
        blocks=(block,) * config["num_hidden_layers"],
        norm=config.get("block_norm", "rms"),
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        tied_head=config.get("tie_word_embeddings", tied),
        wide_sum=config.get("residual_in_fp32", True),
    )


def plan(config: dict[str, Any]) -> Plan:
    return named(translated(config).get("tie_word_embeddings", True))


def named(tied: bool) -> Plan:
    """The name table; a tied head that was saved nevertheless is the embedding again."""

    def rule(name: str) -> list[Piece] | None:
        if name == "lm_head.weight" and tied:
            return []
        if name in OUTER:
            return [Piece(OUTER[name])]
        if (match := IN_LAYER.fullmatch(name)) is None:
            return None
        layer, part, leaf = match.groups()
        if part == "norm":
            return [Piece(f"blocks.{layer}.norm.{NORM.get(leaf, leaf)}")]
        if leaf == "conv1d.weight":
            return [Piece(f"blocks.{layer}.mixer.conv.taps", lambda taps: taps.squeeze(1))]  # [C, 1, k]
        return [Piece(f"blocks.{layer}.mixer.{INNER.get(leaf, leaf)}")]

    return rule


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether this is a config.json of the state-spaces repositories."""
    return {"d_model", "n_layer", "vocab_size"} <= config.keys() and "hidden_size" not in config


def translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config in Transformers' words."""
    if not is_original(config):
        return dict(config)
    known = {"d_state": "state_size", "d_conv": "conv_kernel", "expand": "expand", "dt_rank": "time_step_rank"}
    known |= {"conv_bias": "use_conv_bias", "bias": "use_bias"}
    return original(config, known, {"layer": ("Mamba1",)})


def original(
    config: Mapping[str, Any], known: Mapping[str, str], fixed: Mapping[str, Iterable[Any]], **fill: Any
) -> dict[str, Any]:
    """An original config in Transformers' words. `known`: ssm_cfg's words that have one; `fixed`: those of which only
    these values run here; `fill`: what this code takes for granted where Transformers' default differs."""
    only(config, d_intermediate=(0,), attn_layer_idx=([],), bidirectional=(False,), norm_epsilon=(1e-5,))
    ssm = config.get("ssm_cfg") or {}
    only(ssm, **fixed)
    if unknown := sorted(ssm.keys() - known.keys() - fixed.keys() - SILENT):
        raise UnsupportedError(f"This model's ssm_cfg asks for {', '.join(unknown)}, which is not supported.")
    multiple = config.get("pad_vocab_size_multiple", 8)
    return fill | {
        **{known[word]: value for word, value in ssm.items() if word in known},
        "hidden_size": config["d_model"],
        "num_hidden_layers": config["n_layer"],
        "vocab_size": -(-config["vocab_size"] // multiple) * multiple,
        "block_norm": "rms" if config.get("rms_norm", True) else "layer",
        "tie_word_embeddings": config.get("tie_embeddings", True),
        "residual_in_fp32": config.get("residual_in_fp32", True),
    }


def only(config: Mapping[str, Any], **allowed: Iterable[Any]) -> None:
    """Refuses options of which this code runs only these values; null counts as absent."""
    for option, values in allowed.items():
        value = config.get(option)
        if value is not None and value not in values:
            raise UnsupportedError(f"This model's config says {option}={value!r}, which is not supported.")
