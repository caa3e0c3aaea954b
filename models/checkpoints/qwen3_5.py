"""Qwen3.5 (`model_type` qwen3_5): Gated DeltaNet in three of four layers, gated softmax attention in the fourth.

The decoder lies under `model.language_model.*` beside a vision tower (`model.visual.*`, read by the encoders), or under
`model.*` in text-only files; `mtp.*` is a head for drafting, of one more layer. Norms keep w - 1, but for the one
inside the delta mixer. Qwen3-Next shares all of this but the fused projections.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Piece, Plan
from fluvial.models.checkpoints._transformer import rope
from fluvial.models.decoder import BlockConfig, DecoderConfig
from fluvial.models.mtp import Mtp

_DELTA, _FULL = "linear_attention", "full_attention"
# what else these options can say changes the numbers; a value that is not listed is refused
_KNOWN: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attn_output_gate": (True, None),
    "output_gate_type": ("swish", "silu", None),
    "mamba_ssm_dtype": ("float32", None),
    "sliding_window": (None,),
    "use_sliding_window": (False, None),
    "num_experts": (0, None),
    "mlp_bias": (False, None),
}


def text_of(config: dict[str, Any]) -> dict[str, Any]:
    """The decoder's part of a config, nested or flat."""
    text: dict[str, Any] = config.get("text_config") or config
    return text


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    """Errors: UnsupportedError for an option with a value that is not implemented."""
    text = text_of(config)
    for option, values in _KNOWN.items():
        if (value := text.get(option)) not in values and option in text:
            raise UnsupportedError(f"{config['model_type']} with {option} = {value!r} is not supported yet.")
    eps, d_model = text["rms_norm_eps"], text["hidden_size"]
    mixers = {
        _DELTA: {
            "heads": text["linear_num_value_heads"],
            "k_heads": text["linear_num_key_heads"],
            "d_k": text["linear_key_head_dim"],
            "d_v": text["linear_value_head_dim"],
            "conv": text["linear_conv_kernel_dim"],
            "qk_eps": 1e-6,
            "norm_eps": eps,
        },
        _FULL: _attention(text),
    }
    kinds = {_DELTA: "gated_delta", _FULL: "attention"}
    mlp = BlockConfig("swiglu", {"d_ff": text["intermediate_size"]})
    blocks: list[BlockConfig] = []
    for layer in layers(text):
        if layer not in mixers:
            raise UnsupportedError(f"{config['model_type']} with a layer of type {layer!r} is not supported yet.")
        blocks += [BlockConfig(kinds[layer], mixers[layer]), mlp]
    return DecoderConfig(text["vocab_size"], d_model, tuple(blocks), "rms1", eps, tied(config))


def _attention(text: dict[str, Any]) -> dict[str, Any]:
    heads, bias = text["num_attention_heads"], text.get("attention_bias", False)
    return {
        "heads": heads,
        "kv_heads": text["num_key_value_heads"],
        "d_head": text.get("head_dim") or text["hidden_size"] // heads,
        "gate": True,
        "qk_norm": "rms1",
        "bias": bias,
        "out_bias": bias,
        "norm_eps": text["rms_norm_eps"],
        **mrope(text),
    }


def layers(text: dict[str, Any]) -> list[str]:
    """The type of each layer, listed or by the interval of full attention."""
    count, every = text["num_hidden_layers"], text.get("full_attention_interval") or 4
    given = text.get("layer_types") or [_DELTA if (i + 1) % every else _FULL for i in range(count)]
    if len(given) != count:
        raise ValueError(f"{len(given)} layer_types for {count} layers")
    return list(given)


def tied(config: dict[str, Any]) -> bool:
    """Whether the head is the embedding."""
    return bool(config.get("tie_word_embeddings", text_of(config).get("tie_word_embeddings", False)))


def mrope(
    text: dict[str, Any], sections: tuple[int, ...] = (11, 11, 10), share: float = 0.25, theta: float = 10000.0
) -> dict[str, Any]:
    """Attention's options for positions on three axes; the defaults are the family's. Errors: UnsupportedError."""
    given = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    sections = tuple(given.pop("mrope_section", None) or sections)
    if len(sections) != 3:
        raise ValueError(f"mrope_section {sections}")
    if not given.pop("mrope_interleaved", True):
        raise UnsupportedError("The config asks for mrope_interleaved = False, which is not supported yet.")
    share = text.get("partial_rotary_factor") or share
    options = text | {"rope_parameters": given, "rope_scaling": None, "partial_rotary_factor": share}
    return rope(options, theta) | {"sections": sections}


def plan(config: dict[str, Any]) -> Plan:
    """Where each tensor goes. `mtp.*` is the drafting head's; the tower's tensors are the tower's, if there is one."""
    shared, tower = tied(config), "vision_config" in config

    def place(name: str) -> list[Piece] | None:
        if name.startswith("mtp."):
            return None
        if name.startswith("model.visual."):
            return None if tower else []
        if name == "lm_head.weight":
            return [] if shared else [Piece("head.weight")]
        return _of_decoder(re.sub(r"^model\.(language_model\.)?", "", name))

    return place


def draft_head(config: dict[str, Any]) -> tuple[Mtp, Plan]:
    """The head that `mtp.*` holds, of one layer with full attention, and where its tensors go. The plan raises
    UnsupportedError for a head of another kind: experts, several layers, embeddings of its own."""
    text, decoder = text_of(config), decoder_config(config)
    mlp = BlockConfig("swiglu", {"d_ff": text["intermediate_size"]})
    head = Mtp(decoder, [BlockConfig("attention", _attention(text)), mlp])
    wanted = {"mtp_num_hidden_layers": 1, "num_nextn_predict_layers": 1, "mtp_use_dedicated_embeddings": False}
    unknown = [f"{name} = {text[name]!r:.40}" for name, value in wanted.items() if text.get(name, value) != value]

    def place(name: str) -> list[Piece] | None:
        if not name.startswith("mtp."):
            return None
        inner = name.removeprefix("mtp.")
        experts = ["experts"] if re.search(r"\.mlp\.(experts|gate|shared_expert\w*)\.", inner) else []
        if refused := [*unknown, *experts]:
            raise UnsupportedError(f"{config['model_type']} with a drafting head (mtp) of {refused[0]} is unsupported.")
        if inner in _DRAFT:
            return [Piece(_DRAFT[inner])]
        return [Piece(f"layers.{p.name}", p.take) for p in pieces] if (pieces := _of_decoder(inner)) else None

    return head, place


def _flat(taps: Tensor) -> Tensor:
    return taps.squeeze(1)  # [C, 1, size], a depthwise convolution's


_WHOLE = {"embed_tokens.weight": "embedding.weight", "norm.weight": "norm.gain"}
_DRAFT = {
    "fc.weight": "join.weight",
    "pre_fc_norm_embedding.weight": "norm_embedding.gain",
    "pre_fc_norm_hidden.weight": "norm_hidden.gain",
}
# what follows `layers.N.`: which of the layer's two blocks, our name, how to take it
_LAYER: list[tuple[str, int, str, Callable[[Tensor], Tensor] | None]] = [
    (r"input_layernorm\.weight", 0, "norm.gain", None),
    (r"post_attention_layernorm\.weight", 1, "norm.gain", None),
    (r"mlp\.((?:gate|up|down)_proj\.weight)", 1, r"mixer.\1", None),
    (r"self_attn\.([qkvo]_proj\.(?:weight|bias))", 0, r"mixer.\1", None),
    (r"self_attn\.([qk]_norm)\.weight", 0, r"mixer.\1.gain", None),
    (r"linear_attn\.((?:in_proj_qkv|in_proj_[abz]|out_proj)\.weight)", 0, r"mixer.\1", None),
    (r"linear_attn\.conv1d\.weight", 0, "mixer.conv.taps", _flat),
    (r"linear_attn\.(A_log|dt_bias)", 0, r"mixer.\1", None),
    (r"linear_attn\.norm\.weight", 0, "mixer.norm.gain", None),
]


def _of_decoder(name: str) -> list[Piece] | None:
    if name in _WHOLE:
        return [Piece(_WHOLE[name])]
    if (layer := re.fullmatch(r"layers\.(\d+)\.(.+)", name)) is None:
        return None
    for pattern, block, ours, take in _LAYER:
        if (match := re.fullmatch(pattern, layer[2])) is not None:
            place = f"blocks.{2 * int(layer[1]) + block}.{match.expand(ours)}"
            return [Piece(place) if take is None else Piece(place, take)]
    return None
