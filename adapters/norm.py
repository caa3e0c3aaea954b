"""Norms, in fp32 whatever the model computes in; shared by decoders and encoders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.module import Module
from fluvial.adapters.ops import op


@op
def rms_norm(x: Tensor, gain: Tensor, offset: float, eps: float) -> Tensor:
    """x [..., D], gain [D] -> x / rms(x) * (offset + gain)."""
    return F.rms_norm(x, x.shape[-1:], gain + offset if offset else gain, eps)


@op
def layer_norm(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> Tensor:
    """x [..., D], gain, shift [D] -> (x - mean) / std * gain + shift."""
    return F.layer_norm(x, x.shape[-1:], gain, shift, eps)


class RMSNorm(Module):
    """x / rms(x) * (offset + gain) over the last dimension, in fp32 (Zhang & Sennrich 2019). `offset` 1: gain is
    kept as w-1."""

    def __init__(self, width: int, eps: float = 1e-6, offset: float = 0.0) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.gain = nn.Parameter(torch.full((width,), 1.0 - offset))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return rms_norm(wide, self.gain.to(wide.dtype), self.offset, self.eps).to(x.dtype)


class LayerNorm(Module):
    """(x - mean) / std * gain + shift over the last dimension, in fp32; with `groups` > 1, per group of channels."""

    def __init__(self, width: int, eps: float = 1e-5, groups: int = 1) -> None:
        super().__init__()
        self.eps, self.groups = eps, groups
        self.gain, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        if self.groups == 1:
            return layer_norm(wide, self.gain.to(wide.dtype), self.shift.to(wide.dtype), self.eps).to(x.dtype)
        grouped = wide.unflatten(-1, (self.groups, -1))
        normed = F.layer_norm(grouped, grouped.shape[-1:], eps=self.eps).flatten(-2)
        return (normed * self.gain.to(wide.dtype) + self.shift.to(wide.dtype)).to(x.dtype)


def norm(kind: str, width: int, eps: float) -> LayerNorm | RMSNorm:
    """The norm that block lists name: "rms", "rms1" (gain kept as w-1) or "layer"."""
    if kind == "layer":
        return LayerNorm(width, eps)
    if kind not in ("rms", "rms1"):
        raise UnsupportedError(f"Unknown norm '{kind}'.", hint="It is 'rms', 'rms1' or 'layer'.")
    return RMSNorm(width, eps, offset=1.0 if kind == "rms1" else 0.0)
