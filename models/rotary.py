"""Rotary position embedding (Su et al. 2021), the half-split layout of Llama and Qwen, over the first `width`
channels."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """positions int64 [B, T] -> cos, sin [B, 1, T, width / 2]; angles in fp64, since positions reach millions."""
    frequency = theta ** (-torch.arange(0, width, 2, dtype=torch.float64, device=positions.device) / width)
    angle = positions[:, None, :, None].double() * frequency
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, T, D] -> the same with its first 2 * cos.shape[-1] channels rotated."""
    half = cos.shape[-1]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)
