"""What the hybrids share: SSD in the words that Bamba, Granite and Falcon-H1 use (`mamba_*`), both spellings of layer
types, and a name table per layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Piece, Plan
from fluvial.models.checkpoints._transformer import rope

LINEAR, FULL = "linear_attention", "full_attention"
_OLD = {"mamba": LINEAR, "attention": FULL}
# a pattern for what follows `layers.N.`, which of the layer's blocks, our name there, and how to take it
Row = tuple[str, int, str] | tuple[str, int, str, Callable[[Tensor], Tensor]]


def layers(config: Mapping[str, Any], known: Iterable[str], default: Sequence[str]) -> list[str]:
    """The type of each layer; `default` where the config does not list them."""
    given = config.get("layer_types") or config.get("layers_block_type") or default
    kinds = [_OLD.get(kind, kind) for kind in given]
    if unknown := sorted(set(kinds) - set(known)):
        raise UnsupportedError(f"The config asks for layers of type {', '.join(map(str, unknown)):.80}.")
    if len(kinds) != config["num_hidden_layers"]:
        raise ValueError(f"{len(kinds)} layer types for {config['num_hidden_layers']} layers")
    return kinds


def number(config: Mapping[str, Any], option: str) -> float:
    """A multiplier; absent or null means 1."""
    value = config.get(option)
    return 1.0 if value is None else float(value)


def whole_rope(config: dict[str, Any], theta: float = 10000.0) -> dict[str, Any]:
    """Attention's rotary options in a family that turns whole heads."""
    options = rope(config, theta)
    if options["rotary"] != 1.0:
        raise UnsupportedError(f"The config asks for partial_rotary_factor {options['rotary']}.")
    return options


def ssd(config: Mapping[str, Any], d_inner: int, eps: float) -> dict[str, Any]:
    """The options of "mamba2" from `mamba_*`."""
    heads, groups = config.get("mamba_n_heads", 128), config.get("mamba_n_groups", 1)
    d_head = config.get("mamba_d_head", "auto")
    d_head = d_inner // heads if d_head == "auto" else d_head
    if heads * d_head != d_inner or heads % groups:
        raise ValueError(f"{heads} SSD heads of {d_head} in {groups} groups do not make {d_inner}")
    low, high = config.get("time_step_limit") or (0.0, float("inf"))
    return {
        "heads": heads,
        "d_head": d_head,
        "d_state": config.get("mamba_d_state", 256),
        "groups": groups,
        "norm_groups": groups,
        "conv": config.get("mamba_d_conv", 4),
        "conv_bias": config.get("mamba_conv_bias", True),
        "bias": config.get("mamba_proj_bias", False),
        "dt_limit": (_limit(low), _limit(high)),
        "norm_eps": eps,
    }


def _limit(value: Any) -> float:
    """A number as JSON has it: plain, or Transformers' {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, dict) else value)


def flat(taps: Tensor) -> Tensor:
    """A depthwise convolution's [C, 1, size] -> [C, size]."""
    return taps.squeeze(1)


def ssd_rows(ours: str = "mixer") -> list[Row]:
    """Where the tensors of `mamba.*` go."""
    return [
        (r"mamba\.conv1d\.weight", 0, f"{ours}.conv.taps", flat),
        (r"mamba\.conv1d\.bias", 0, f"{ours}.conv.bias"),
        (r"mamba\.norm\.weight", 0, f"{ours}.norm.gain"),
        (r"mamba\.((?:in|out)_proj\.(?:weight|bias)|A_log|D|dt_bias)", 0, rf"{ours}.\1"),
    ]


def planned(whole: Mapping[str, str], rows: Callable[[int], Sequence[Row]], *, tied: bool) -> Plan:
    """`whole`: tensors outside the layers; `rows(i)`: layer i's, all that match; two blocks to a layer."""

    def place(name: str) -> list[Piece] | None:
        if name == "lm_head.weight":  # some tied checkpoints hold a copy
            return [] if tied else [Piece("head.weight")]
        if name in whole:
            return [Piece(whole[name])]
        if (layer := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)) is None:
            return None
        pieces = []
        for pattern, block, ours, *take in rows(int(layer[1])):
            if (match := re.fullmatch(pattern, layer[2])) is not None:
                pieces.append(Piece(f"blocks.{2 * int(layer[1]) + block}.{match.expand(ours)}", *take))
        return pieces or None

    return place
