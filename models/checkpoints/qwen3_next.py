"""Qwen3-Next (`model_type` qwen3_next), dense layers: Qwen3.5's decoder with the delta projections fused on disk.

`in_proj_qkvz` and `in_proj_ba` hold, for each k head in turn, the rows of its q, k, v and z (or b and a).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Piece, Plan
from fluvial.models.checkpoints import qwen3_5
from fluvial.models.decoder import DecoderConfig
from fluvial.models.mtp import Mtp


def decoder_config(config: dict[str, Any]) -> DecoderConfig:
    """Errors: UnsupportedError for experts, or an option with a value that is not implemented."""
    experts, dense = config.get("num_experts", 512), set(config.get("mlp_only_layers") or [])
    sparse = config.get("decoder_sparse_step", 1)
    if experts and any(i not in dense and (i + 1) % sparse == 0 for i in range(config["num_hidden_layers"])):
        raise UnsupportedError(
            f"qwen3_next with experts (num_experts = {experts}) is not supported yet.", hint="Use a dense model."
        )
    return qwen3_5.decoder_config(config | {"num_experts": 0})


def draft_head(config: dict[str, Any]) -> tuple[Mtp, Plan]:
    """As Qwen3.5's."""
    return qwen3_5.draft_head(config | {"num_experts": 0})


def plan(config: dict[str, Any]) -> Plan:
    k_heads, v_heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    share = v_heads // k_heads
    d_k, d_v = config["linear_key_head_dim"], share * config["linear_value_head_dim"]
    inner = qwen3_5.plan(config)

    def place(name: str) -> list[Piece] | None:
        fused = re.fullmatch(r"model\.layers\.(\d+)\.linear_attn\.in_proj_(qkvz|ba)\.weight", name)
        if fused is None:
            return list(pieces) if (pieces := inner(name)) is not None else None
        mixer = f"blocks.{2 * int(fused[1])}.mixer.in_proj"
        if fused[2] == "ba":
            return [Piece(f"{mixer}_{part}.weight", _rows([share, share], [i])) for i, part in enumerate("ba")]
        widths = [d_k, d_k, d_v, d_v]
        return [Piece(f"{mixer}_qkv.weight", _rows(widths, [0, 1, 2])), Piece(f"{mixer}_z.weight", _rows(widths, [3]))]

    def _rows(widths: list[int], parts: list[int]) -> Callable[[Tensor], Tensor]:
        """The rows of these parts, each part with all heads together."""

        def take(fused: Tensor) -> Tensor:
            split = fused.unflatten(0, (k_heads, sum(widths))).split(widths, 1)
            return torch.cat([split[part].flatten(0, 1) for part in parts])

        return take

    return place
