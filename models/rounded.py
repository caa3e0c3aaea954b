"""Recurrent memories in fewer bits between forwards: a forward reads fp32, computes in fp32, and its end is rounded.

"bf16" keeps the upper half of fp32. "int8" keeps codes with a scale per row, and the error of that rounding in four
bits more, which the next forward adds back (error feedback): a memory that decays slowly changes by less than a code a
token, and would stand still without. Only the leaves that sum up over tokens are rounded; the last inputs of
convolutions and shifts, and rows of attention, are as they were. Every forward rounds once, so that what a model says
depends a little on how its input was split: law 1 holds up to that rounding only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fluvial.adapters.errors import UsageError

STATE_DTYPES = ("fp32", "bf16", "int8")
MEMORIES = ("S", "h")  # what mixers call the leaf that sums up over tokens
STEPS = 16  # of the kept error, to a code


def known(dtype: str) -> str:
    """The name of a state dtype, or a `UsageError` that lists them."""
    if dtype not in STATE_DTYPES:
        raise UsageError(f"Unknown state dtype '{dtype}'.", hint=f"One of {', '.join(STATE_DTYPES)}.")
    return dtype


def is_memory(name: str) -> bool:
    """Whether the leaf of that name ("3.S", "3.ssd.h") sums up over tokens."""
    return name.rpartition(".")[2] in MEMORIES


@dataclass(frozen=True)
class Rounded:
    """A leaf [B, ..., N] of precision `wide`, kept as `parts`, each [B, ...]."""

    dtype: str
    parts: Mapping[str, Tensor]
    shape: tuple[int, ...]
    wide: torch.dtype

    @classmethod
    def of(cls, values: Tensor, dtype: str) -> Rounded:
        """values [B, ..., N] as "bf16" or "int8"."""
        if dtype == "bf16":
            parts = {"value": values.to(torch.bfloat16)}
        else:
            scale = (values.abs().amax(-1) / 127).to(torch.bfloat16)
            steps = values / torch.where(scale == 0, 1.0, scale.to(values.dtype))[..., None]
            # bf16 may have rounded the scale down: the largest value is then a little above 127 codes
            fine = steps.mul_(STEPS).round_().clamp_(-128 * STEPS, 128 * STEPS - STEPS // 2 - 1)
            code = ((fine + STEPS // 2) / STEPS).floor_()
            error = fine.sub_(code, alpha=STEPS).flatten(1).to(torch.int8) & 15
            if error.shape[1] % 2:
                error = torch.cat([error, error[:, :1]], 1)
            packed = (error[:, ::2] | error[:, 1::2] << 4).view(torch.uint8)
            parts = {"code": code.to(torch.int8), "scale": scale, "error": packed}
        return cls(dtype, parts, tuple(values.shape), values.dtype)

    @property
    def values(self) -> Tensor:
        """The leaf as a forward reads it [B, ..., N]."""
        if self.dtype == "bf16":
            return self.parts["value"].to(self.wide)
        code, error = self.parts["code"].to(self.wide), self.parts["error"].view(torch.int8)
        both = torch.stack([error << 4 >> 4, error >> 4], -1).flatten(1)[:, : math.prod(self.shape[1:])]
        fine = code.add_(both.reshape(self.shape).to(self.wide), alpha=1 / STEPS)
        return fine.mul_(self.parts["scale"].to(self.wide)[..., None])

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    def replaced(self, other: Rounded, rows: Tensor) -> Rounded:
        """This leaf with the other's rows where `rows`, bool [B], is true."""
        parts = {
            name: torch.where(rows.view(-1, *[1] * (part.ndim - 1)), other.parts[name], part)
            for name, part in self.parts.items()
        }
        return Rounded(self.dtype, parts, self.shape, self.wide)
