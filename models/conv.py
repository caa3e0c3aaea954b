"""The short causal convolution that most recurrent mixers put before their memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluvial.adapters.module import Module
from fluvial.adapters.ops import op
from fluvial.models.journal import Window
from fluvial.models.tree import Tree


@op
def short_conv(
    x: Tensor, past: Tensor, taps: Tensor, bias: Tensor | None, activate: bool, *, tree: Tree | None = None
) -> tuple[Tensor, Tensor]:
    """x [B, T, C], past [B, size-1, C], taps [C, size] -> y [B, T, C] with y_t = bias + sum_j taps_j rows_{t+j},
    through SiLU if asked, and rows [B, size-1 + T, C], past and x."""
    rows = torch.cat([past, x], 1)
    if tree is None:
        # as a picture of height 1: rows already lie in channels-last order, the fast path of a depthwise convolution
        y = F.conv2d(rows.mT[:, :, None], taps[:, None, None], bias, groups=len(taps))[:, :, 0].mT
    else:
        y = (rows[:, tree.windows(taps.shape[1])] * taps.mT).sum(2)
        y = y if bias is None else y + bias
    return F.silu(y) if activate else y, rows


class ShortConv(Module):
    """Depthwise causal convolution over the last `size` tokens, through SiLU if asked; its leaf holds the size - 1
    inputs before x."""

    def __init__(self, channels: int, size: int = 4, bias: bool = False, *, silu: bool = False) -> None:
        super().__init__()
        self.size, self.silu = size, silu
        self.taps = nn.Parameter(torch.empty(channels, size))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        nn.init.uniform_(self.taps, -(size**-0.5), size**-0.5)

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.zeros(batch, self.size - 1, self.taps.shape[0], dtype=dtype, device=device)

    def forward(self, x: Tensor, past: Tensor, tree: Tree | None = None) -> tuple[Tensor, Window]:
        """x [B, T, C], past [B, size-1, C] -> y [B, T, C] and the window that follows."""
        bias = None if self.bias is None else self.bias.to(past.dtype)
        y, rows = short_conv(x.to(past.dtype), past, self.taps.to(past.dtype), bias, self.silu, tree=tree)
        return y, Window(rows, self.size - 1)
