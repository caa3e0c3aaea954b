"""The LoRA slot of a `Linear`: y += strength * scale * (x A^T) B^T (Hu et al. 2021), beside a base that never changes.

A `Route` says which plugins act on a forward and how strongly: one number for the whole batch, or one per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fluvial.adapters.errors import IntegrityError

Route = Mapping[str, "float | Tensor"]  # plugin name -> strength, a number or [B]


@dataclass(frozen=True)
class LoraPair:
    """A low-rank update: A [rank, in], B [out, rank], scale (alpha/rank in PEFT's files)."""

    A: Tensor
    B: Tensor
    scale: float = 1.0

    def check(self, d_out: int, d_in: int) -> None:
        """Raises `IntegrityError` unless the pair fits a matrix [d_out, d_in]."""
        fits = self.A.ndim == self.B.ndim == 2 and self.A.shape[1] == d_in and self.B.shape[0] == d_out
        if not fits or self.A.shape[0] != self.B.shape[1]:
            raise IntegrityError(
                f"LoRA pair A {list(self.A.shape)}, B {list(self.B.shape)} does not fit a matrix [{d_out}, {d_in}].",
                hint="The plugin was trained for another base model.",
            )

    def __call__(self, x: Tensor, strength: float | Tensor) -> Tensor:
        """x [B, ..., in] -> the update [B, ..., out]."""
        update = F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale
        if isinstance(strength, Tensor):
            strength = strength.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return update * strength
