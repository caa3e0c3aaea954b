"""Nemotron-H (`model_type` nemotron_h), dense: each layer is Mamba-2, softmax attention without positions, or a
squared-ReLU feed-forward. `hybrid_override_pattern` spells them as M, * and -."""

from __future__ import annotations

from typing import Any

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Piece, Plan
from fluvial.models.checkpoints._hybrid import FULL, LINEAR, layers
from fluvial.models.checkpoints._transformer import epsilon, heads, is_tied
from fluvial.models.checkpoints.mamba import named, only
from fluvial.models.decoder import BlockConfig, DecoderConfig

_PATTERN = {"M": LINEAR, "*": FULL, "-": "mlp", "E": "moe"}
_OLD = {"mamba_n_groups": "n_groups", "mamba_d_conv": "conv_kernel", "mamba_conv_bias": "use_conv_bias"}
_OLD |= {"mamba_dt_min": "time_step_min"}
_MOST_LAYERS = 4096


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    """Errors: UnsupportedError for experts, or an option with a value that is not implemented."""
    config = config | {new: config[old] for old, new in _OLD.items() if old in config}
    only(config, mamba_hidden_act=("silu", "swish"), mlp_hidden_act=("relu2",), attention_bias=(False,))
    only(config, sliding_window=())
    eps, groups = epsilon({"rms_norm_eps": config.get("layer_norm_epsilon", 1e-5)}), config.get("n_groups", 8)
    mixers = {
        LINEAR: BlockConfig(
            "mamba2",
            {
                "heads": config["mamba_num_heads"],
                "d_head": config["mamba_head_dim"],
                "d_state": config.get("ssm_state_size", 128),
                "groups": groups,
                "norm_groups": groups,
                "conv": config.get("conv_kernel", 4),
                "conv_bias": config.get("use_conv_bias", True),
                "bias": config.get("use_bias", False),
                "dt_limit": (config.get("time_step_min", 0.001), float("inf")),  # its time_step_limit is not used
                "norm_eps": eps,
            },
        ),
        FULL: BlockConfig("attention", {**heads({"num_key_value_heads": 8, **config}, d_head=128), "rotary": 0.0}),
        "mlp": BlockConfig("relu2", {"d_ff": config["intermediate_size"], "bias": config.get("mlp_bias", False)}),
    }
    return DecoderConfig(
        vocab=config["vocab_size"],
        d_model=config["hidden_size"],
        blocks=tuple(mixers[kind] for kind in _layers(config, set(mixers))),
        norm_eps=eps,
        tied_head=is_tied(config, False),
    )


def _layers(config: dict[str, Any], known: set[str]) -> list[str]:
    pattern = [_PATTERN.get(letter, letter) for letter in config.get("hybrid_override_pattern") or ""]
    given = config.get("layers_block_type") or config.get("layer_types") or pattern
    if "moe" in given:
        raise UnsupportedError("nemotron_h with experts (layers of type moe) is not supported yet.")
    if not 0 < len(given) <= _MOST_LAYERS:
        raise ValueError(f"{len(given)} layer types")
    return layers(config | {"num_hidden_layers": len(given)}, known, given)


def plan(config: dict[str, Any]) -> Plan:
    """The hub's files say `backbone.`, newer ones `model.`; `mtp.*` only drafts."""
    inner = named(is_tied(config, False))

    def place(name: str) -> list[Piece] | None:
        if name.startswith("mtp."):
            return []
        pieces = inner("backbone." + name.removeprefix("model.") if name.startswith("model.") else name)
        return None if pieces is None else list(pieces)

    return place
