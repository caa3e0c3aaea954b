"""The gated short convolution of LFM2 (Liquid AI 2025): a memory of a few tokens between two linear gates.

B, C, x = W_in u;  y = W_out (C * conv(B * x)), with elementwise gates and a depthwise causal convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fluvial.adapters.linear import Linear
from fluvial.models.conv import ShortConv
from fluvial.models.journal import Pending
from fluvial.models.mixer import Mixer, Step, mixer
from fluvial.models.state import Leaf, recurrent_dtype


@mixer("short_conv")
class GatedShortConv(Mixer):
    """The whole state is the window: the last `conv` - 1 rows of B * x."""

    trees = True

    def __init__(self, d_model: int, *, conv: int = 3, bias: bool = False) -> None:
        super().__init__()
        self.in_proj, self.out_proj = Linear(d_model, 3 * d_model, bias), Linear(d_model, d_model, bias)
        self.conv = ShortConv(d_model, conv, bias)

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Leaf]:
        return {"conv": self.conv.init_state(batch, recurrent_dtype(dtype), device)}

    def forward(self, x: Tensor, state: dict[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        past = state["conv"]
        assert isinstance(past, Tensor)
        B, C, rows = self.in_proj(x, step.route).to(past.dtype).chunk(3, -1)
        mixed, window = self.conv(B * rows, past, step.tree)
        return self.out_proj((C * mixed).to(x.dtype), step.route), {"conv": window}
