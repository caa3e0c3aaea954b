"""Norms and the short causal convolution: the small shared parts of mixers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluvial.models.journal import Window


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + gain) over the last dimension, in fp32 (Zhang & Sennrich 2019). `offset` 1: gain is kept as w-1."""

    def __init__(self, width: int, eps: float = 1e-6, offset: float = 0.0) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.gain = nn.Parameter(torch.full((width,), 1.0 - offset))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return F.rms_norm(wide, wide.shape[-1:], (self.gain + self.offset).to(wide.dtype), self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std * gain + shift over the last dimension, in fp32; with `groups` > 1, per group of channels."""

    def __init__(self, width: int, eps: float = 1e-5, groups: int = 1) -> None:
        super().__init__()
        self.eps, self.groups = eps, groups
        self.gain, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        grouped = wide.unflatten(-1, (self.groups, -1))
        normed = F.layer_norm(grouped, grouped.shape[-1:], eps=self.eps).flatten(-2)
        return (normed * self.gain.to(wide.dtype) + self.shift.to(wide.dtype)).to(x.dtype)


def norm(kind: str, width: int, eps: float) -> nn.Module:
    """The norm that block lists name: "rms", "rms1" (gain kept as w-1) or "layer"."""
    if kind == "layer":
        return LayerNorm(width, eps)
    return RMSNorm(width, eps, offset=1.0 if kind == "rms1" else 0.0)


class ShortConv(nn.Module):
    """Depthwise causal convolution over the last `size` tokens; its leaf holds the size - 1 inputs before x."""

    def __init__(self, channels: int, size: int = 4, bias: bool = False) -> None:
        super().__init__()
        self.size = size
        self.taps = nn.Parameter(torch.empty(channels, size))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        nn.init.uniform_(self.taps, -(size**-0.5), size**-0.5)

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.zeros(batch, self.size - 1, self.taps.shape[0], dtype=dtype, device=device)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Window]:
        """x [B, T, C], past [B, size-1, C] -> y [B, T, C]; y_t = sum_j taps_j x_{t-size+1+j}."""
        rows = torch.cat([past, x.to(past.dtype)], 1)
        tokens, taps = x.shape[1], self.taps.to(past.dtype)
        y = rows[:, :tokens] * taps[:, 0]
        for j in range(1, self.size):
            y = y + rows[:, j : j + tokens] * taps[:, j]
        if self.bias is not None:
            y = y + self.bias.to(past.dtype)
        return y, Window(rows, self.size - 1)
