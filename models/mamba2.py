"""Mamba-2, the state-space dual form (Dao & Gu 2024): one scalar decay per head and token.

    h_t = e^{dt_t A} h_{t-1} + dt_t x_t B_t^T;  y_t = h_t C_t + D x_t               h [P, N] per head

Letters: B batch (or the input row B_t), T tokens, L chunk, H heads, P head width, N state width, X = dt x,
G running sum of dt A inside a chunk. Chunk form:
    Y = tril((C B^T) * e^{G_i - G_j}) X + e^G (C h^T);  h' = e^{G_end} h + (X e^{G_end - G})^T B
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluvial.adapters.linear import Linear
from fluvial.adapters.module import initial
from fluvial.adapters.norm import RMSNorm
from fluvial.adapters.ops import op
from fluvial.models.conv import ShortConv
from fluvial.models.journal import Final, Outer, Pending
from fluvial.models.mixer import Mixer, Step, blank, mixer
from fluvial.models.state import Leaf, recurrent_dtype
from fluvial.models.tree import Tree

CHUNK = 64


@op
def ssd(
    X: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, h: Tensor, *, tree: Tree | None = None
) -> tuple[Tensor, Tensor]:
    """X [B, T, H, P]; log_decay [B, T, H]; B, C [B, T, H, N]; h [B, H, P, N] -> y [B, T, H, P], h' (h as it was,
    for a tree)."""
    outputs = []
    for X_c, a, B_c, C_c in zip(*(rows.split(CHUNK, 1) for rows in (X, log_decay, B, C)), strict=True):
        X_c, B_c, C_c = (rows.transpose(1, 2) for rows in (X_c, B_c, C_c))  # [B, H, L, ...]
        if tree is None:
            G = a.cumsum(1, dtype=torch.float64).transpose(1, 2)  # [B, H, L]; long sums, small differences
            seen = torch.ones(G.shape[-1], G.shape[-1], dtype=torch.bool, device=G.device).tril()
        else:
            G, seen = tree.sums(a.transpose(1, 2)), tree.ancestors
        D = (G[..., :, None] - G[..., None, :]).to(a.dtype)
        D = D.masked_fill(~seen, float("-inf")).exp()
        rise, fall = G.to(a.dtype).exp()[..., None], (G[..., -1:] - G).to(a.dtype).exp()[..., None]
        y = ((C_c @ B_c.mT) * D) @ X_c + rise * (C_c @ h.mT)
        if tree is None:
            h = rise[..., -1:, :] * h + (X_c * fall).mT @ B_c
        outputs.append(y.transpose(1, 2))
    return torch.cat(outputs, 1), h


@op
def mamba2_mix(
    mixed: Tensor,
    dt: Tensor,
    z: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    D: Tensor,
    gain: Tensor | None,
    h: Tensor,
    padding: Tensor | None,
    norm_groups: int,
    norm_before: bool,
    eps: float,
    dt_limit: tuple[float, float],
    *,
    tree: Tree | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All between the convolution and the output projection. mixed [B, T, H * P + 2 * groups * N] holds u | B | C;
    dt [B, T, H]; z [B, T, H * P]; A_log, dt_bias, D [H]; gain [H * P], None without a norm; h [B, H, P, N]; padding
    bool [B, T] -> y [B, T, H * P], X [B, T, H, P], log_decay [B, T, H], h'."""
    H, P, N = h.shape[1:]
    width = (mixed.shape[-1] - H * P) // 2
    u, B, C = mixed.split([H * P, width, width], -1)
    u = u.unflatten(-1, (H, P))
    dt = blank(F.softplus(dt + dt_bias).clamp(*dt_limit), padding)
    log_decay, X = -A_log.exp() * dt, u * dt[..., None]
    y, h_end = ssd(X, log_decay, per_head(B, H, N), per_head(C, H, N), h, tree=tree)
    y, gate = (y + D[:, None] * u).flatten(-2), F.silu(z)
    if not norm_before:
        y = y * gate
    if gain is not None:
        grouped = y.unflatten(-1, (norm_groups, -1))
        y = F.rms_norm(grouped, grouped.shape[-1:], eps=eps).flatten(-2) * gain
    return y * gate if norm_before else y, X, log_decay, h_end


def per_head(rows: Tensor, heads: int, d_state: int) -> Tensor:
    """rows [B, T, groups * N], each group's for its share of the heads -> [B, T, H, N]."""
    grouped = rows.unflatten(-1, (-1, d_state))
    return grouped.repeat_interleave(heads // grouped.shape[2], 2)


@mixer("mamba2")
class Mamba2(Mixer):
    """One input projection to gate, x, B, C and dt; short convolution; `ssd`; gated norm; output projection.

    `norm` says where the norm stands: "after" the gate, "before" it, or "none" at all. `scales` multiply the five
    parts of the input projection (Falcon-H1).
    """

    trees = True

    def __init__(
        self,
        d_model: int,
        *,
        heads: int,
        d_head: int,
        d_state: int,
        groups: int = 1,
        conv: int = 4,
        conv_bias: bool = True,
        bias: bool = False,
        out_bias: bool | None = None,
        norm: str = "after",
        norm_groups: int = 1,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        norm_eps: float = 1e-5,
        scales: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if norm not in ("after", "before", "none"):
            raise ValueError(f"norm {norm!r:.40} is not after, before or none")
        self.norm_at, self.scales = norm, tuple(scales)
        self.heads, self.d_head, self.d_state, self.groups = heads, d_head, d_state, groups
        self.d_inner, self.dt_limit, self.norm_groups = heads * d_head, dt_limit, norm_groups
        self.widths = (self.d_inner, groups * d_state, groups * d_state)
        self.in_proj = Linear(d_model, self.d_inner + sum(self.widths) + heads, bias)
        self.conv = ShortConv(sum(self.widths), conv, conv_bias, silu=True)
        self.A_log, self.dt_bias = nn.Parameter(torch.empty(heads)), nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(self.d_inner, norm_eps) if norm != "none" else nn.Identity()
        self.out_proj = Linear(self.d_inner, d_model, bias if out_bias is None else out_bias)
        self.reset()

    @initial
    def reset(self) -> None:
        self.A_log.uniform_(1, 16).log_()
        dt = torch.empty_like(self.dt_bias).uniform_(-6.9, -2.3).exp()
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Leaf]:
        dtype = recurrent_dtype(dtype)
        h = torch.zeros(batch, self.heads, self.d_head, self.d_state, dtype=dtype, device=device)
        return {"h": h, "conv": self.conv.init_state(batch, dtype, device)}

    def forward(self, x: Tensor, state: dict[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        h, past = state["h"], state["conv"]
        assert isinstance(h, Tensor) and isinstance(past, Tensor)
        projected = self.in_proj(x, step.route)
        if self.scales:
            projected = projected * step.memo(("ssd", self.scales, self.widths, x.dtype), lambda _: self._scales(x))
        z, mixed, dt = projected.split([self.d_inner, sum(self.widths), self.heads], -1)
        mixed, window = self.conv(mixed, past, step.tree)
        gain, eps = (self.norm.gain.to(h.dtype), self.norm.eps) if isinstance(self.norm, RMSNorm) else (None, 0.0)
        dt, z, A_log, dt_bias, D = (part.to(h.dtype) for part in (dt, z, self.A_log, self.dt_bias, self.D))
        before = self.norm_at == "before"
        sizes = (self.norm_groups, before, eps, self.dt_limit)
        y, X, log_decay, h_end = mamba2_mix(
            mixed, dt, z, A_log, dt_bias, D, gain, h, step.padding, *sizes, tree=step.tree
        )
        pending: Pending = Final(h_end)
        if step.journal:
            B = per_head(mixed.split(self.widths, -1)[1], self.heads, self.d_state)
            pending = Outer(h, ((X, B),), log_decay.unsqueeze(-1))
        return self.out_proj(y.to(x.dtype), step.route), {"h": pending, "conv": window}

    def _scales(self, like: Tensor) -> Tensor:
        parts = zip((self.d_inner, *self.widths, self.heads), self.scales, strict=True)
        return torch.cat([like.new_full((width,), scale) for width, scale in parts])
