"""What the text Transformers share: [attention, swiglu] * n, its config keys and tensor names as Llama spells them.

Both spellings of rotary positions are read: `rope_theta` and `rope_scaling` at the top level, or all of it in
`rope_parameters`. What a config asks for and is not implemented raises `UnsupportedError` that names it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Piece, Plan
from fluvial.models.decoder import BlockConfig, DecoderConfig
from fluvial.models.rotary import SCALINGS

Options = dict[str, Any]
LARGEST_WINDOW = 1 << 20  # tokens
_LAYER = re.compile(r"model\.layers\.(\d+)\.(self_attn|mlp|input_layernorm|post_attention_layernorm)\.(.+)")
_NORMS = {"q_norm.weight": "q_norm.gain", "k_norm.weight": "k_norm.gain"}
_OUTSIDE = {"model.embed_tokens.weight": "embedding.weight", "model.norm.weight": "norm.gain"}


def transformer(config: Options, attention: Callable[[int], Options], *, tied: bool) -> DecoderConfig:
    """`attention(i)` gives layer i's options; `tied` and the like are the family's defaults."""
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedError(f"The config asks for hidden_act {config['hidden_act']!r:.40}.", "Only silu is known.")
    if (share := rope(config)["rotary"]) != 1.0:
        raise UnsupportedError(f"The config asks for partial_rotary_factor {share}.", "This family turns whole heads.")
    bias = bool(config.get("mlp_bias", False))
    feed_forward = BlockConfig("swiglu", {"d_ff": config["intermediate_size"], "bias": bias})
    blocks: list[BlockConfig] = []
    for i in range(config["num_hidden_layers"]):
        blocks += [BlockConfig("attention", attention(i)), feed_forward]
    return DecoderConfig(
        vocab=config["vocab_size"],
        d_model=config["hidden_size"],
        blocks=tuple(blocks),
        norm_eps=epsilon(config),
        tied_head=is_tied(config, tied),
    )


def is_tied(config: Options, default: bool) -> bool:
    """Whether the head is the embedding; families differ in what a config that does not say means."""
    return bool(config.get("tie_word_embeddings", default))


def epsilon(config: Options) -> float:
    """What is added under the norms' square roots."""
    eps = float(config.get("rms_norm_eps", 1e-6))
    if not 0 <= eps < 1:
        raise ValueError(f"rms_norm_eps is {eps}")
    return eps


def heads(config: Options, d_head: int | None = None) -> Options:
    """Attention's head counts; `d_head` is the family's default width, else the hidden size is shared out."""
    count = config["num_attention_heads"]
    kv_count = config.get("num_key_value_heads") or count
    if count % kv_count:
        raise ValueError(f"{count} query heads do not share {kv_count} key/value heads")
    width = config.get("head_dim") or d_head or config["hidden_size"] // count
    return {"heads": count, "kv_heads": kv_count, "d_head": width}


def rope(config: Options, theta: float = 10000.0) -> Options:
    """Attention's rotary options from either spelling; `theta` is the family's default."""
    published = config.get("rope_parameters") or config.get("rope_scaling") or {}
    given = {key: value for key, value in published.items() if value is not None}
    kinds = [given.pop(key, None) for key in ("rope_type", "type")]
    kind = kinds[0] or kinds[1] or "default"
    base = given.pop("rope_theta", None) or config.get("rope_theta") or theta
    share = given.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0
    if not base > 1 or not 0 < share <= 1:
        raise ValueError(f"rope_theta {base}, partial_rotary_factor {share}")
    options: Options = {"theta": float(base), "rotary": float(share)}
    if kind != "default" and kind not in SCALINGS:
        raise UnsupportedError(
            f"The config asks for rope type {kind!r:.40}.", f"Known: default, {', '.join(SCALINGS)}."
        )
    unknown = sorted(given.keys() - SCALINGS.get(kind, frozenset[str]().union(*SCALINGS.values())))
    if unknown:
        raise UnsupportedError(f"The config's rope type {kind} has unknown options: {', '.join(unknown):.80}.")
    if kind == "default":
        return options
    longest = given.get("original_max_position_embeddings") or config.get("max_position_embeddings", 0)
    if kind != "linear":
        given["original_max_position_embeddings"] = config.get("original_max_position_embeddings") or longest
    if kind == "yarn" and "factor" not in given:
        given["factor"] = config["max_position_embeddings"] / given["original_max_position_embeddings"]
    return options | {"scaling": {"kind": kind, **given}}


def windows(config: Options, slides: Callable[[int], bool]) -> list[int]:
    """Each layer's sliding window, 0 for none: from `layer_types`, or where `slides(i)` says so."""
    count = config["num_hidden_layers"]
    width: int | None = config.get("sliding_window") if config.get("use_sliding_window") else None
    if width is not None and not 0 < width <= LARGEST_WINDOW:  # its ring is allocated, and no tensor proves it
        raise ValueError(f"sliding_window is {width}")
    kinds = config.get("layer_types")
    if kinds is None:
        return [width if width and slides(i) else 0 for i in range(count)]
    if len(kinds) < count:
        raise ValueError(f"layer_types names {len(kinds)} of {count} layers")
    unknown = sorted(set(kinds[:count]) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UnsupportedError(f"The config asks for layers of type {', '.join(map(str, unknown)):.80}.")
    if "sliding_attention" in kinds[:count] and not width:
        raise ValueError("layer_types has sliding_attention, but there is no sliding_window in use")
    return [width if width and kind == "sliding_attention" else 0 for kind in kinds[:count]]


def transformer_plan(tied: bool, prefix: str = "") -> Plan:
    """Names as Llama and its descendants publish them, after `prefix`."""

    def place(name: str) -> list[Piece] | None:
        if not name.startswith(prefix):
            return None
        name = name.removeprefix(prefix)
        if name == "lm_head.weight":  # some tied checkpoints hold a copy
            return [] if tied else [Piece("head.weight")]
        if name in _OUTSIDE:
            return [Piece(_OUTSIDE[name])]
        if (match := _LAYER.fullmatch(name)) is None:
            return None
        layer, part, rest = int(match[1]), match[2], match[3]
        if rest == "rotary_emb.inv_freq":  # computed; old checkpoints hold it
            return []
        block = 2 * layer + (part in ("mlp", "post_attention_layernorm"))
        if part.endswith("layernorm"):
            return [Piece(f"blocks.{block}.norm.gain")] if rest == "weight" else None
        return [Piece(f"blocks.{block}.mixer.{_NORMS.get(rest, rest)}")]

    return place
