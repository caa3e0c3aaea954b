"""SwiGLU with a multiplier inside the activation: Falcon-H1's feed-forward (maximal-update parametrisation)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fluvial.models.feed_forward import SwiGLU
from fluvial.models.journal import Pending
from fluvial.models.mixer import Step, mixer
from fluvial.models.state import Leaf


@mixer("scaled_swiglu")
class ScaledSwiGLU(SwiGLU):
    """W_down(silu(gate_scale * W_gate x) * W_up x)."""

    def __init__(self, d_model: int, *, d_ff: int, bias: bool = False, gate_scale: float = 1.0) -> None:
        super().__init__(d_model, d_ff=d_ff, bias=bias)
        self.gate_scale = gate_scale

    def forward(self, x: Tensor, state: dict[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        inner = F.silu(self.gate_proj(x, step.route) * self.gate_scale) * self.up_proj(x, step.route)
        return self.down_proj(inner, step.route), {}
