"""Mamba, the selective state space (Gu & Dao 2023), with FalconMamba's norms as an option (Zuo et al. 2024).

    h_t = e^{dt_t A} * h_{t-1} + dt_t x_t B_t;  y_t = h_t C_t + D x_t               h [E, N], elementwise over both

Letters: B batch (or the input row B_t), T tokens, L chunk, E inner channels, N state width, R rank of dt. Every channel
and state entry decays at its own rate, so no chunk form with matrix products exists: decays and inputs of a chunk
are made at once, the recurrence runs one multiply-add a token, and the outputs are read from all its states at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluvial.adapters.linear import Linear
from fluvial.adapters.module import initial
from fluvial.adapters.ops import op
from fluvial.models.conv import ShortConv
from fluvial.models.journal import Count, Final, Pending
from fluvial.models.mixer import Mixer, Step, blank, mixer
from fluvial.models.state import Leaf, recurrent_dtype
from fluvial.models.tree import Tree

CHUNK = 32  # L states of [E, N] exist at a time


@op
def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, *, tree: Tree | None = None
) -> tuple[Tensor, Tensor]:
    """x, dt [B, T, E]; A [E, N]; B, C [B, T, N]; h [B, E, N] -> y [B, T, E], h' (of no use for a tree)."""
    outputs, size = [], CHUNK if tree is None else len(tree)
    for x_c, dt_c, B_c, C_c in zip(*(rows.split(size, 1) for rows in (x, dt, B, C)), strict=True):
        states = _states(x_c, dt_c, A, B_c, h, tree)
        h = states[-1]
        outputs.append((torch.stack(states, 1) @ C_c.unsqueeze(-1)).squeeze(-1))
    return torch.cat(outputs, 1), h


def _states(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, h: Tensor, tree: Tree | None = None) -> list[Tensor]:
    """h after each of the L tokens."""
    decay = (dt.transpose(0, 1).unsqueeze(-1) * A).exp()  # [L, B, E, N]
    gain = (dt * x).transpose(0, 1).unsqueeze(-1) * B.transpose(0, 1).unsqueeze(-2)
    states: list[Tensor] = []
    for t, (decay_t, gain_t) in enumerate(zip(decay.unbind(), gain.unbind(), strict=True)):
        parent = t - 1 if tree is None else tree.parents[t]
        states.append(torch.addcmul(gain_t, decay_t, h if parent < 0 else states[parent]))
    return states


@op
def mamba_mix(
    u: Tensor,
    dt: Tensor,
    z: Tensor,
    B: Tensor,
    C: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    D: Tensor,
    h: Tensor,
    padding: Tensor | None,
    *,
    tree: Tree | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All between the projections. u, dt, z [B, T, E]; B, C [B, T, N]; A_log [E, N]; dt_bias, D [E]; h [B, E, N];
    padding bool [B, T] -> y [B, T, E], the step sizes [B, T, E], h'."""
    size = blank(F.softplus(dt + dt_bias), padding)
    y, h_end = selective_scan(u, size, -A_log.exp(), B, C, h, tree=tree)
    return (y + D * u) * F.silu(z), size, h_end


@dataclass(frozen=True)
class Scan:
    """The recurrence again over the committed rows. Its rows are x, dt [B, T, E] and B [B, T, N]; the decay e^{dt A}
    would be a state a token, so it is made anew from the model's own A_log."""

    base: Tensor
    x: Tensor
    dt: Tensor
    B: Tensor
    A_log: Tensor

    def commit(self, n: Count) -> Leaf:
        h, top = self.base, max(n)
        at = torch.tensor(n, device=h.device)[:, None, None]
        late = torch.arange(top, device=h.device)[None, :, None] >= at
        dt = self.dt[:, :top].masked_fill(late, 0)  # a zero step leaves h as it is, exactly
        A = -self.A_log.to(h.dtype).exp()
        for x_c, dt_c, B_c in zip(*(rows[:, :top].split(CHUNK, 1) for rows in (self.x, dt, self.B)), strict=True):
            h = _states(x_c, dt_c, A, B_c, h)[-1] if dt_c.shape[1] else h
        return h

    def along(self, path: Tensor) -> Pending:
        return Scan(self.base, self.x[:, path], self.dt[:, path], self.B[:, path], self.A_log)

    @property
    def nbytes(self) -> int:
        return self.base.nbytes + self.x.nbytes + self.dt.nbytes + self.B.nbytes


@mixer("mamba")
class Mamba(Mixer):
    """One input projection to x and gate; short convolution; low-rank dt, B and C from x; `selective_scan`; gate;
    output projection. `bcdt_eps`: FalconMamba's RMS norms without weights on B, C and the low-rank dt."""

    trees = True

    def __init__(
        self,
        d_model: int,
        *,
        d_inner: int,
        d_state: int = 16,
        rank: int,
        conv: int = 4,
        conv_bias: bool = True,
        bias: bool = False,
        bcdt_eps: float | None = None,
    ) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.rank, self.bcdt_eps = d_inner, d_state, rank, bcdt_eps
        self.in_proj = Linear(d_model, 2 * d_inner, bias)
        self.conv = ShortConv(d_inner, conv, conv_bias, silu=True)
        self.x_proj, self.dt_proj = Linear(d_inner, rank + 2 * d_state), Linear(rank, d_inner)
        self.A_log, self.dt_bias = nn.Parameter(torch.empty(d_inner, d_state)), nn.Parameter(torch.empty(d_inner))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.out_proj = Linear(d_inner, d_model, bias)
        self.reset()

    @initial
    def reset(self) -> None:
        self.A_log.copy_(torch.arange(1, self.d_state + 1, device=self.A_log.device).log())
        dt = torch.empty_like(self.dt_bias).uniform_(-6.9, -2.3).exp()  # log-uniform in 0.001 .. 0.1
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse softplus

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Leaf]:
        dtype = recurrent_dtype(dtype)
        h = torch.zeros(batch, self.d_inner, self.d_state, dtype=dtype, device=device)
        return {"h": h, "conv": self.conv.init_state(batch, dtype, device)}

    def forward(self, x: Tensor, state: dict[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        h, past = state["h"], state["conv"]
        assert isinstance(h, Tensor) and isinstance(past, Tensor)
        u, z = self.in_proj(x, step.route).chunk(2, -1)
        u, window = self.conv(u, past, step.tree)
        low = self.x_proj(u.to(x.dtype), step.route).split([self.rank, self.d_state, self.d_state], -1)
        dt, B, C = (self._norm(rows.to(h.dtype)) for rows in low)
        dt = self.dt_proj(dt.to(x.dtype), step.route)
        dt, z, A_log, dt_bias, D = (part.to(h.dtype) for part in (dt, z, self.A_log, self.dt_bias, self.D))
        y, size, h_end = mamba_mix(u, dt, z, B, C, A_log, dt_bias, D, h, step.padding, tree=step.tree)
        pending = Scan(h, u, size, B, self.A_log) if step.journal else Final(h_end)
        return self.out_proj(y.to(x.dtype), step.route), {"h": pending, "conv": window}

    def _norm(self, rows: Tensor) -> Tensor:
        return rows if self.bcdt_eps is None else F.rms_norm(rows, rows.shape[-1:], eps=self.bcdt_eps)
