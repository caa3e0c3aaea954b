"""Parts that vision towers share: a bidirectional attention block, and a convolution written as patches times a
`Linear`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluvial.adapters.linear import Linear
from fluvial.adapters.lora import Route
from fluvial.adapters.norm import LayerNorm


class Conv3x3(nn.Module):
    """3x3 convolution with zero padding, [N, H, W, C] -> [N, H/stride, W/stride, out]; its matrix is a `Linear`."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.stride, self.proj = stride, Linear(9 * channels, out, bias=True)

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        height, width, s = x.shape[1], x.shape[2], self.stride
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        taps = [padded[:, i : i + height : s, j : j + width : s] for i in range(3) for j in range(3)]
        return self.proj(torch.cat(taps, -1), route)


class VisionBlock(nn.Module):
    """Pre-norm bidirectional attention and GELU feed-forward over tokens x [N, L, D]."""

    def __init__(self, width: int, heads: int, d_ff: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = LayerNorm(width, eps), LayerNorm(width, eps)
        self.qkv, self.proj = Linear(width, 3 * width, bias=True), Linear(width, width, bias=True)
        self.up, self.down = Linear(width, d_ff, bias=True), Linear(d_ff, width, bias=True)

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        q, k, v = (
            rows.unflatten(-1, (self.heads, -1)).transpose(1, 2) for rows in self.qkv(self.norm1(x), route).chunk(3, -1)
        )
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2), route)
        return x + self.down(F.gelu(self.up(self.norm2(x), route)), route)
