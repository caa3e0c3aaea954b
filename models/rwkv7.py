"""RWKV-7 (Peng et al. 2025): a delta-rule memory with a decay per channel, and its channel mix.

    S_t = S_{t-1} (diag(w) - kh (a * kh)^T) + v k~^T;  y = S r                        published with S [V, K]

Here S is [K, V] like the other memories. Letters: B batch, T tokens, L chunk, H heads, K = V head width, w decay in log
form, r receptance (query), alpha = -kh, b = kh * a, P = cumsum(log w) inside a chunk, P- = P - log w. Chunk form, with
pairwise products weighted by e^{P_i - P_j} (P-_i for alpha):
    Z = (I - A_ab)^-1 (A_ak V + (alpha e^{P-}) S);   O = (r e^P) S + A_qk V + A_qb Z
    S' = e^{P_end} S + (k~ e^{P_end - P})^T V + (b e^{P_end - P})^T Z
log w > -e^{-1/2}, so a chunk of 32 keeps every exponent under 20: safe in fp32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluvial.adapters.linear import Linear
from fluvial.adapters.module import Module, initial
from fluvial.adapters.norm import LayerNorm
from fluvial.adapters.ops import op
from fluvial.models.journal import Final, Outer, Pending, Window
from fluvial.models.mixer import Mixer, Step, blank, mixer
from fluvial.models.state import Leaf, recurrent_dtype
from fluvial.models.tree import Tree

CHUNK = 32


@op
def rwkv7(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, alpha: Tensor, b: Tensor, S: Tensor, *, tree: Tree | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """r, log_w, k, alpha, b [B, T, H, K]; v [B, T, H, V]; S [B, H, K, V] -> y [B, T, H, V], Z [B, T, H, V], S' (S as
    it was, for a tree)."""

    def causal(scores: Tensor) -> Tensor:
        return scores.tril() if tree is None else scores.masked_fill(~tree.ancestors, 0)

    outputs, solved = [], []
    size = CHUNK if tree is None else len(tree)
    for rows in zip(*(t.split(size, 1) for t in (r, log_w, k, v, alpha, b)), strict=True):
        r_c, log_w_c, k_c, v_c, alpha_c, b_c = (t.transpose(1, 2) for t in rows)  # [B, H, L, ...]
        P = log_w_c.cumsum(2) if tree is None else tree.sums(log_w_c.mT).mT.to(log_w.dtype)
        rise, fall = P.exp(), (-P).exp()
        r_c, alpha_c = r_c * rise, alpha_c * (P - log_w_c).exp()
        k_fall, b_fall = k_c * fall, b_c * fall
        A_ab, A_ak = causal(alpha_c @ b_fall.mT).tril(-1), causal(alpha_c @ k_fall.mT).tril(-1)
        Z = torch.linalg.solve_triangular(-A_ab, A_ak @ v_c + alpha_c @ S, upper=False, unitriangular=True)
        y = r_c @ S + causal(r_c @ k_fall.mT) @ v_c + causal(r_c @ b_fall.mT) @ Z
        if tree is None:
            end = (P[:, :, -1:] - P).exp()
            S = P[:, :, -1].exp()[..., None] * S + (k_c * end).mT @ v_c + (b_c * end).mT @ Z
        outputs.append(y.transpose(1, 2))
        solved.append(Z.transpose(1, 2))
    return torch.cat(outputs, 1), torch.cat(solved, 1), S


@op
def rwkv7_mix(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    g: Tensor,
    v_first: Tensor | None,
    v_gate: Tensor | None,
    k_k: Tensor,
    k_a: Tensor,
    r_k: Tensor,
    gain: Tensor,
    shift: Tensor,
    S: Tensor,
    padding: Tensor | None,
    eps: float,
    *,
    tree: Tree | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """All between the projections. r, w, k, v, a, g, v_first, v_gate [B, T, H * K], gates before their sigmoids; k_k,
    k_a, gain, shift [H * K]; r_k [H, K]; S [B, H, K, K]; padding bool [B, T]
    -> y [B, T, H * K], the journal's k~, v, b, Z, log_w [B, T, H, K], S'."""
    if v_first is not None and v_gate is not None:
        v = v + (v_first - v) * v_gate.sigmoid()
    log_w, a = -math.exp(-0.5) * w.sigmoid(), a.sigmoid()
    r, k_unit, k, v, a, log_w = (
        rows.unflatten(-1, S.shape[1:3]) for rows in (r, k * k_k, k * (1 + (a - 1) * k_a), v, a, log_w)
    )
    kh = F.normalize(k_unit, dim=-1, eps=1e-12)
    b, k_in, log_w = blank(kh * a, padding), blank(k, padding), blank(log_w, padding)
    y, Z, S_end = rwkv7(r, log_w, k_in, v, -kh, b, S, tree=tree)
    y = F.layer_norm(y, y.shape[-1:], eps=eps).flatten(-2) * gain + shift
    y = y + ((r * k * r_k).sum(-1, keepdim=True) * v).flatten(-2)
    return y * g, k_in, v, b, Z, log_w, S_end


@op
def token_shift(x: Tensor, past: Tensor, mu: Tensor, *, tree: Tree | None = None) -> tuple[Tensor, Tensor]:
    """x [B, T, D], past [B, 1, D], mu [M, D] -> mixes x_t + (x_{t-1} - x_t) mu [M, B, T, D], rows [B, 1 + T, D]."""
    rows = torch.cat([past, x.to(past.dtype)], 1)
    before = rows[:, :-1] if tree is None else rows[:, tree.windows(2)[:, 0]]
    return x + (before.to(x.dtype) - x) * mu[:, None, None], rows


class TokenShift(Module):
    """lerp(x_t, x_{t-1}, mu) for several mixes at once; its leaf is the last input."""

    def __init__(self, d_model: int, mixes: int) -> None:
        super().__init__()
        self.mu = nn.Parameter(torch.rand(mixes, d_model))

    def forward(self, x: Tensor, past: Tensor, tree: Tree | None) -> tuple[tuple[Tensor, ...], Window]:
        mixes, rows = token_shift(x, past, self.mu.to(x.dtype), tree=tree)
        return mixes.unbind(), Window(rows, 1)


@op
def activate(x: Tensor, kind: str) -> Tensor:
    """tanh(x) or sigmoid(x), by name."""
    return x.tanh() if kind == "tanh" else x.sigmoid()


class LowRank(Module):
    """base + B f(A x): the small data-dependent parts of decay, in-context rate, value mix and gate."""

    def __init__(self, d_model: int, rank: int, activation: str = "", base: bool = True) -> None:
        super().__init__()
        self.A, self.B, self.activation = Linear(d_model, rank), Linear(rank, d_model), activation
        self.base = nn.Parameter(torch.zeros(d_model)) if base else None

    def forward(self, x: Tensor, step: Step) -> Tensor:
        inner = self.A(x, step.route)
        y = self.B(activate(inner, self.activation) if self.activation else inner, step.route)
        return y if self.base is None else y + self.base.to(y.dtype)


@mixer("rwkv7_time")
class TimeMix(Mixer):
    """RWKV-7's time mix. `first` marks layer 0, whose v the later layers blend in (through `Step.shared`)."""

    trees = True

    def __init__(
        self,
        d_model: int,
        *,
        d_head: int = 64,
        ranks: tuple[int, int, int, int] = (64, 64, 32, 128),
        first: bool = False,
        norm_eps: float = 64e-5,
    ) -> None:
        super().__init__()
        self.heads, self.d_head, self.first = d_model // d_head, d_head, first
        self.shift = TokenShift(d_model, 6)  # order r, w, k, v, a, g
        self.r_proj, self.k_proj, self.v_proj = (Linear(d_model, d_model) for _ in range(3))
        self.w_lora = LowRank(d_model, ranks[0], "tanh")
        self.a_lora = LowRank(d_model, ranks[1])
        self.v_lora = None if first else LowRank(d_model, ranks[2])
        self.g_lora = LowRank(d_model, ranks[3], "sigmoid", base=False)
        self.k_k, self.k_a = nn.Parameter(torch.full((d_model,), 0.85)), nn.Parameter(torch.ones(d_model))
        self.r_k = nn.Parameter(torch.zeros(self.heads, d_head))
        self.norm = LayerNorm(d_model, norm_eps, groups=self.heads)
        self.o_proj = Linear(d_model, d_model)
        self.reset()

    @initial
    def reset(self) -> None:
        # decays from slow to fast across the channels of a head
        ramp = torch.linspace(0, 1, self.d_head).repeat(self.heads)
        assert self.w_lora.base is not None
        self.w_lora.base.copy_(-6 + 6.5 * ramp**0.9)

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Leaf]:
        dtype = recurrent_dtype(dtype)
        S = torch.zeros(batch, self.heads, self.d_head, self.d_head, dtype=dtype, device=device)
        return {"S": S, "shift": torch.zeros(batch, 1, self.heads * self.d_head, dtype=dtype, device=device)}

    def forward(self, x: Tensor, state: dict[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        S, past = state["S"], state["shift"]
        assert isinstance(S, Tensor) and isinstance(past, Tensor)
        (x_r, x_w, x_k, x_v, x_a, x_g), window = self.shift(x, past, step.tree)
        r, k, v = self.r_proj(x_r, step.route), self.k_proj(x_k, step.route), self.v_proj(x_v, step.route)
        w, a, g = self.w_lora(x_w, step), self.a_lora(x_a, step), self.g_lora(x_g, step)
        r, w, k, v, a, g = (rows.to(S.dtype) for rows in (r, w, k, v, a, g))
        v_first, v_gate = None, None
        if self.v_lora is None:
            step.shared["v_first"] = v
        else:
            v_first, v_gate = step.shared["v_first"], self.v_lora(x_v, step).to(S.dtype)
        weights = (self.k_k, self.k_a, self.r_k, self.norm.gain, self.norm.shift)
        rest = (*(part.to(S.dtype) for part in weights), S, step.padding, self.norm.eps)
        y, k, v, b, Z, log_w, S_end = rwkv7_mix(r, w, k, v, a, g, v_first, v_gate, *rest, tree=step.tree)
        pending = Outer(S, ((k, v), (b, Z)), log_w) if step.journal else Final(S_end)
        return self.o_proj(y.to(x.dtype), step.route), {"S": pending, "shift": window}


@mixer("rwkv7_channel")
class ChannelMix(Mixer):
    """RWKV-7's feed-forward: W_v relu(W_k lerp(x_t, x_{t-1}))^2."""

    trees = True

    def __init__(self, d_model: int, *, d_ff: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.shift = TokenShift(d_model, 1)
        self.key, self.value = Linear(d_model, d_ff), Linear(d_ff, d_model)

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Leaf]:
        return {"shift": torch.zeros(batch, 1, self.d_model, dtype=recurrent_dtype(dtype), device=device)}

    def forward(self, x: Tensor, state: dict[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        past = state["shift"]
        assert isinstance(past, Tensor)
        (mixed,), window = self.shift(x, past, step.tree)
        return self.value(self.key(mixed, step.route).relu().square(), step.route), {"shift": window}
