"""Qwen3-VL (`model_type` qwen3_vl): its vision tower's config and tensor names (`model.visual.*`)."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Piece
from fluvial.encoders.qwen_frames import Watching
from fluvial.encoders.qwen_pixels import Limits
from fluvial.encoders.qwen_vision import QwenVision, QwenVisionConfig


def from_config(config: dict[str, Any]) -> QwenVision:
    """The tower of a config.json; `processor` in it holds what processor_config.json says. Errors: UnsupportedError for
    an option that is not implemented."""
    vision, rope = config["vision_config"], config["vision_config"].get("rope_parameters") or {}
    gelu = {"gelu_pytorch_tanh": "tanh", "gelu": "none"}.get(vision["hidden_act"])
    deepstack = tuple(vision.get("deepstack_visual_indexes") or ())
    unknown = {
        "hidden_act": gelu is None,
        "deepstack_visual_indexes": any(a >= b for a, b in pairwise((-1, *deepstack, vision["depth"]))),
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
            deepstack=deepstack,
            limits=Limits.read(config.get("processor") or {}),
            watching=Watching.read(config.get("processor") or {}),
        )
    )


# what follows `model.visual.`, and our name
_NAMES = [
    (r"pos_embed\.weight", "positions"),
    (r"patch_embed\.proj\.bias", "patch_embed.bias"),
    (r"(blocks\.\d+)\.attn\.((?:qkv|proj)\.\w+)", r"\1.\2"),
    (r"(blocks\.\d+)\.mlp\.linear_fc1\.(\w+)", r"\1.up.\2"),
    (r"(blocks\.\d+)\.mlp\.linear_fc2\.(\w+)", r"\1.down.\2"),
    (r"(blocks\.\d+\.norm[12])\.weight", r"\1.gain"),
    (r"(blocks\.\d+\.norm[12])\.bias", r"\1.shift"),
    (r"(merger|deepstack\.\d+)\.linear_fc1\.(\w+)", r"\1.up.\2"),
    (r"(merger|deepstack\.\d+)\.linear_fc2\.(\w+)", r"\1.down.\2"),
    (r"(merger|deepstack\.\d+)\.norm\.weight", r"\1.norm.gain"),
    (r"(merger|deepstack\.\d+)\.norm\.bias", r"\1.norm.shift"),
]


def plan(name: str) -> list[Piece] | None:
    """Where a tensor on disk goes."""
    if not name.startswith("model.visual."):
        return None
    inner = name.removeprefix("model.visual.").replace("deepstack_merger_list.", "deepstack.")
    if inner == "patch_embed.proj.weight":  # [D, 3, frames, patch, patch]
        return [Piece("patch_embed.weight", lambda kernel: kernel.flatten(1))]
    matches = ((re.fullmatch(pattern, inner), ours) for pattern, ours in _NAMES)
    return next(([Piece(match.expand(ours))] for match, ours in matches if match is not None), None)
