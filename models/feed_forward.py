"""Feed-forwards as mixers without a state: SwiGLU (Shazeer 2020) and ReLU squared (So et al. 2021)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fluvial.adapters.linear import Linear
from fluvial.adapters.ops import op
from fluvial.models.journal import Pending
from fluvial.models.mixer import Mixer, Step, mixer
from fluvial.models.state import Leaf


@op
def gated_silu(gate: Tensor, up: Tensor, scale: float) -> Tensor:
    """gate, up [..., F] -> silu(scale * gate) * up."""
    return F.silu(gate if scale == 1 else gate * scale) * up


@mixer("swiglu")
class SwiGLU(Mixer):
    """W_down(silu(gate_scale * W_gate x) * W_up x); Falcon-H1 scales the gate."""

    trees = True

    def __init__(self, d_model: int, *, d_ff: int, bias: bool = False, gate_scale: float = 1.0) -> None:
        super().__init__()
        self.gate_scale = gate_scale
        self.gate_proj, self.up_proj = Linear(d_model, d_ff, bias), Linear(d_model, d_ff, bias)
        self.down_proj = Linear(d_ff, d_model, bias)

    def forward(self, x: Tensor, state: dict[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        inner = gated_silu(self.gate_proj(x, step.route), self.up_proj(x, step.route), self.gate_scale)
        return self.down_proj(inner, step.route), {}


@mixer("relu2")
class ReLU2(Mixer):
    """W_down relu(W_up x)^2."""

    trees = True

    def __init__(self, d_model: int, *, d_ff: int, bias: bool = False) -> None:
        super().__init__()
        self.up_proj, self.down_proj = Linear(d_model, d_ff, bias), Linear(d_ff, d_model, bias)

    def forward(self, x: Tensor, state: dict[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        return self.down_proj(self.up_proj(x, step.route).relu().square(), step.route), {}
