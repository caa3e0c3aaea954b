"""Qwen3.5 (`model_type` qwen3_5): its vision tower's config and tensor names (`model.visual.*`)."""

from __future__ import annotations

import math
from typing import Any

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Piece
from fluvial.encoders.qwen_pixels import Limits
from fluvial.encoders.qwen_vision import QwenVision, QwenVisionConfig


def from_config(config: dict[str, Any]) -> QwenVision:
    """The tower of a config.json; `processor` in it holds what processor_config.json says. Errors: UnsupportedError for
    an option that is not implemented."""
    vision, rope = config["vision_config"], config["vision_config"].get("rope_parameters") or {}
    gelu = {"gelu_pytorch_tanh": "tanh", "gelu": "none"}.get(vision["hidden_act"])
    unknown = {
        "hidden_act": gelu is None,
        "deepstack_visual_indexes": bool(vision.get("deepstack_visual_indexes")),
        "in_channels": vision.get("in_channels", 3) != 3,
        "patch_size": not isinstance(vision["patch_size"], int),
        "temporal_patch_size": not isinstance(vision["temporal_patch_size"], int),
        "rope_parameters": rope.get("rope_type", "axial") != "axial",
    }
    for option in (name for name, wrong in unknown.items() if wrong):
        raise UnsupportedError(f"A vision tower with {option} = {vision.get(option)!r:.80} is not supported yet.")
    return QwenVision(
        QwenVisionConfig(
            d_model=vision["out_hidden_size"],
            width=vision["hidden_size"],
            depth=vision["depth"],
            heads=vision["num_heads"],
            d_ff=vision["intermediate_size"],
            patch=vision["patch_size"],
            merge=vision["spatial_merge_size"],
            frames=vision["temporal_patch_size"],
            side=math.isqrt(vision["num_position_embeddings"]),
            gelu=gelu or "none",
            theta=rope.get("rope_theta", 10000.0),
            limits=Limits.read(config.get("processor") or {}),
        )
    )


_NAMES = {
    "patch_embed.proj": "patch_embed",
    "merger.norm": "norm",
    "merger.linear_fc1": "merge_up",
    "merger.linear_fc2": "merge_down",
    "attn.qkv": "qkv",
    "attn.proj": "proj",
    "mlp.linear_fc1": "up",
    "mlp.linear_fc2": "down",
    "norm1": "norm1",
    "norm2": "norm2",
}


def plan(name: str) -> list[Piece] | None:
    """Where a tensor on disk goes."""
    if not name.startswith("model.visual."):
        return None
    inner = name.removeprefix("model.visual.")
    if inner == "pos_embed.weight":
        return [Piece("positions")]
    if inner == "patch_embed.proj.weight":  # [D, 3, frames, patch, patch]
        return [Piece("patch_embed.weight", lambda kernel: kernel.flatten(1))]
    block = ".".join(inner.split(".")[:2]) + "." if inner.startswith("blocks.") else ""
    module, _, leaf = inner.removeprefix(block).rpartition(".")
    if module not in _NAMES:
        return None
    if "norm" in module:
        leaf = {"weight": "gain", "bias": "shift"}.get(leaf, leaf)
    return [Piece(f"{block}{_NAMES[module]}.{leaf}")]
