"""Mamba-2 (`model_type` mamba2): Transformers' layout, and the original one of the state-spaces repositories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fluvial.adapters.weights import Plan
from fluvial.models.checkpoints.mamba import is_original, named, only, original, stacked
from fluvial.models.decoder import BlockConfig, DecoderConfig


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    config = _translated(config)
    only(config, hidden_act=("silu", "swish"))
    groups = config.get("n_groups", 8)
    low, high = config.get("time_step_limit") or (0.0, float("inf"))
    block = BlockConfig(
        "mamba2",
        {
            "heads": config["num_heads"],
            "d_head": config["head_dim"],
            "d_state": config.get("state_size", 128),
            "groups": groups,
            "norm_groups": groups,  # the gated norm's mean goes over one group of B and C
            "conv": config.get("conv_kernel", 4),
            "conv_bias": config.get("use_conv_bias", True),
            "bias": config.get("use_bias", False),
            "dt_limit": (_number(low), _number(high)),
            "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        },
    )
    return stacked(config, block, tied=False)


def plan(config: dict[str, Any]) -> Plan:
    return named(_translated(config).get("tie_word_embeddings", False))


def _number(value: Any) -> float:
    """A number as JSON has it: plain, or Transformers' {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, dict) else value)


def _translated(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config in Transformers' words."""
    if not is_original(config):
        return dict(config)
    known = {"d_state": "state_size", "d_conv": "conv_kernel", "expand": "expand", "headdim": "head_dim"}
    known |= {"ngroups": "n_groups", "conv_bias": "use_conv_bias", "bias": "use_bias", "dt_limit": "time_step_limit"}
    d_inner = int((config.get("ssm_cfg") or {}).get("expand", 2) * config["d_model"])
    fixed = {
        "layer": ("Mamba2",),
        "d_ssm": (d_inner,),
        "D_has_hdim": (False,),
        "rmsnorm": (True,),
        "norm_before_gate": (False,),
    }
    words = original(config, known, fixed, head_dim=64, n_groups=1)
    return words | {"num_heads": d_inner // words["head_dim"]}
