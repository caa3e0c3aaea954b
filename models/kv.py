"""How attention keeps its rows: "exact" (every row), "int8" (every row in 8 bits), "window:N" (the first SINKS and the
last N rows: constant memory, and what lies between is forgotten)."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from fluvial.adapters.errors import UsageError

SINKS = 4  # first tokens that a window keeps: softmax parks there what it does not need (Xiao et al. 2023)
_SCALE = 2  # bytes behind a row: its scale, in fp16


def window_of(mode: str) -> int:
    """Rows of the window that a mode asks for; 0 for one that keeps all. Errors: UsageError for another name."""
    found = re.fullmatch(r"exact|int8|window:([1-9]\d{0,8})", mode)
    if found is None:
        raise UsageError(
            f"There is no KV mode '{mode}'.", "", "One of exact, int8, window:N (N rows, like window:4096)."
        )
    return int(found[1] or 0)


def width(d: int, *, int8: bool) -> int:
    """Numbers in a stored row of d values."""
    return d + _SCALE if int8 else d


def encode(rows: Tensor) -> Tensor:
    """rows [..., D] -> int8 [..., D + 2]: codes by the row's largest value, and the scale's two bytes."""
    rows = rows.detach().float()
    scale = (rows.abs().amax(-1, keepdim=True) / 127).half()
    codes = (rows / scale.float().clamp(min=2**-24)).round().clamp(-127, 127).to(torch.int8)
    return torch.cat([codes, scale.view(torch.int8)], -1)


def decode(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """What `encode` gave, as rows [..., D] of `dtype`."""
    codes, scale = stored[..., :-_SCALE], stored[..., -_SCALE:].contiguous().view(torch.float16)
    return codes.to(dtype) * scale.to(dtype)
