"""Gated DeltaNet (Yang, Kautz & Hatamizadeh 2024; Qwen3-Next and Qwen3.5): a delta-rule memory with a decay gate.

    S <- e^g S;  delta = beta (v - k^T S);  S <- S + k delta^T;  o = q^T S          S [K, V] per head

Letters: B batch, T tokens, C chunk, H heads, K key width, V value width, G running sum of g inside a chunk,
D_ij = e^{G_i - G_j}. The chunk form solves the deltas of a chunk at once:
    A = I + stril(diag(beta) K K^T * D);  delta = A^-1 (beta V - (beta K e^G) S)
    O = (Q e^G) S + tril(Q K^T * D) delta;  S' = e^{G_end} S + (K e^{G_end - G})^T delta
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.linear import Linear
from fluvial.adapters.module import initial
from fluvial.adapters.norm import RMSNorm
from fluvial.adapters.ops import op
from fluvial.models.conv import ShortConv
from fluvial.models.journal import Final, Outer, Pending
from fluvial.models.mixer import Mixer, Step, blank, mixer
from fluvial.models.state import Leaf, recurrent_dtype
from fluvial.models.tree import Tree

CHUNK = 32


@op
def gated_delta(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor, *, tree: Tree | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k [B, T, H, K]; v [B, T, H, V]; g, beta [B, T, H]; S [B, H, K, V] -> o [B, T, H, V], delta [B, T, H, V],
    S' (S as it was, for a tree)."""
    tokens = q.shape[1]
    if tokens == 1:
        return _step(q, k, v, g, beta, S)
    size = min(CHUNK, tokens) if tree is None else tokens
    q, k, v, g, beta = (_chunks(rows, size) for rows in (q, k, v, g, beta))  # [N, B, H, C, ...], zeros at the end
    if tree is None:
        G = g.cumsum(-1, dtype=torch.float64)  # differences of long sums: fp32 would lose the small ones
        seen = torch.ones(size, size, dtype=torch.bool, device=g.device).tril()
    else:
        G, seen = tree.sums(g), tree.ancestors
    D = (G[..., :, None] - G[..., None, :]).to(g.dtype)
    D = D.masked_fill(~seen, float("-inf")).exp()  # [N, B, H, C, C]
    A = ((beta[..., None] * k) @ k.mT * D).tril(-1)  # the solve takes the unit diagonal as given
    rise, fall = G.to(g.dtype).exp()[..., None], (G[..., -1:] - G).to(g.dtype).exp()[..., None]
    U, W = torch.linalg.solve_triangular(
        A, torch.cat([beta[..., None] * v, beta[..., None] * k * rise], -1), upper=False, unitriangular=True
    ).split([v.shape[-1], k.shape[-1]], -1)
    scores, q_rise = (q @ k.mT) * D, q * rise
    k_fall, decay = k * fall, rise[..., -1:, :]
    outputs, deltas = [], []
    for n in range(q.shape[0]):
        delta = U[n] - W[n] @ S
        outputs.append(q_rise[n] @ S + scores[n] @ delta)
        deltas.append(delta)
        if tree is None:
            S = decay[n] * S + k_fall[n].mT @ delta
    return _tokens(outputs, tokens), _tokens(deltas, tokens), S


def _step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, g, beta = q[:, 0], k[:, 0], v[:, 0], g[:, 0], beta[:, 0]
    S = S * g.exp()[..., None, None]
    delta = beta[..., None] * (v - (k.unsqueeze(-2) @ S).squeeze(-2))
    S = S + k.unsqueeze(-1) * delta.unsqueeze(-2)
    return (q.unsqueeze(-2) @ S).squeeze(-2).unsqueeze(1), delta.unsqueeze(1), S


def _chunks(rows: Tensor, size: int) -> Tensor:
    """[B, T, H, ...] -> [N, B, H, C, ...]; zeros fill the last chunk: a zero gate and key leave the state alone."""
    missing = -rows.shape[1] % size
    if missing:
        rows = torch.cat([rows, rows.new_zeros(rows.shape[0], missing, *rows.shape[2:])], 1)
    return rows.unflatten(1, (-1, size)).movedim(1, 0).transpose(2, 3)


def _tokens(chunks: list[Tensor], tokens: int) -> Tensor:
    """N chunks of [B, H, C, V] -> [B, T, H, V]."""
    return torch.stack(chunks, 1).transpose(2, 3).flatten(1, 2)[:, :tokens]


@op
def gated_delta_mix(
    rows: Tensor,
    a: Tensor,
    b: Tensor,
    z: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    gain: Tensor,
    S: Tensor,
    padding: Tensor | None,
    k_heads: int,
    hard: bool,
    beta_scale: float,
    qk_eps: float,
    norm_eps: float,
    *,
    tree: Tree | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """All between the convolution and the output projection. rows [B, T, ...] hold q | k | v of `k_heads`, `k_heads`
    and H heads; a, b [B, T, H]; z [B, T, H * V]; A_log, dt_bias [H]; gain [V]; S [B, H, K, V]; padding bool [B, T]
    -> y [B, T, H * V], k [B, T, H, K], delta [B, T, H, V], g [B, T, H], S'."""
    H, K, V = S.shape[1:]
    q, k, v = (
        part.unflatten(-1, (heads, -1))
        for part, heads in zip(rows.split([k_heads * K, k_heads * K, H * V], -1), (k_heads, k_heads, H), strict=True)
    )
    q, k = _unit(q, qk_eps) * K**-0.5, _unit(k, qk_eps)
    if k_heads != H:
        q, k = (part.repeat_interleave(H // k_heads, 2) for part in (q, k))
    g = blank(-A_log.exp() * F.softplus(a + dt_bias), padding)
    beta = (1.3 * b.sigmoid() - 0.2).clamp(0, 1) if hard else b.sigmoid()
    beta = blank(beta if beta_scale == 1 else beta * beta_scale, padding)
    o, delta, S_end = gated_delta(q, k, v, g, beta, S, tree=tree)
    y = F.rms_norm(o, (V,), gain, norm_eps).flatten(-2) * F.silu(z)
    return y, k, delta, g, S_end


def _unit(rows: Tensor, eps: float) -> Tensor:
    if not eps:
        return F.normalize(rows, dim=-1, eps=1e-6)
    return rows * (rows.square().sum(-1, keepdim=True) + eps).rsqrt()


@mixer("gated_delta")
class GatedDelta(Mixer):
    """Projections, short convolution, gates and output norm around `gated_delta`.

    `gate` "hard" clamps beta to exactly 0 or 1 at the ends, so that filler does not leak into the memory;
    "sigmoid" is the published form. k heads are repeated to the v heads. q and k become unit vectors: x / max(|x|,
    1e-6), or with `qk_eps` the published x / sqrt(|x|^2 + qk_eps). `beta_scale` 2 lets a memory flip its sign along k
    (eigenvalues down to -1; Grazzi et al. 2025). With `split`, q, k and v have a projection and a convolution each
    (OLMo-hybrid).
    """

    trees = True

    def __init__(
        self,
        d_model: int,
        *,
        heads: int,
        d_k: int,
        d_v: int,
        k_heads: int | None = None,
        conv: int = 4,
        gate: str = "sigmoid",
        qk_eps: float = 0.0,
        norm_eps: float = 1e-6,
        beta_scale: float = 1.0,
        split: bool = False,
    ) -> None:
        super().__init__()
        if gate not in ("sigmoid", "hard"):
            raise UnsupportedError(f"Gated DeltaNet has no gate '{gate}'.", hint="It is 'sigmoid' or 'hard'.")
        self.heads, self.k_heads, self.d_k, self.d_v = heads, k_heads or heads, d_k, d_v
        self.gate, self.qk_eps, self.beta_scale, self.split = gate, qk_eps, beta_scale, split
        self.widths = (self.k_heads * d_k, self.k_heads * d_k, heads * d_v)
        if split:
            self.q_proj, self.k_proj, self.v_proj = (Linear(d_model, width) for width in self.widths)
        else:
            self.in_proj_qkv = Linear(d_model, sum(self.widths))
        self.in_proj_z = Linear(d_model, heads * d_v)
        self.in_proj_a, self.in_proj_b = Linear(d_model, heads), Linear(d_model, heads)
        if split:
            self.q_conv, self.k_conv, self.v_conv = (ShortConv(width, conv, silu=True) for width in self.widths)
        else:
            self.conv = ShortConv(sum(self.widths), conv, silu=True)
        self.A_log, self.dt_bias = nn.Parameter(torch.empty(heads)), nn.Parameter(torch.empty(heads))
        self.norm = RMSNorm(d_v, norm_eps)
        self.out_proj = Linear(heads * d_v, d_model)
        self.reset()

    @initial
    def reset(self) -> None:
        self.A_log.uniform_(1, 16).log_()
        dt = torch.empty_like(self.dt_bias).uniform_(-6.9, -2.3).exp()  # log-uniform in 0.001 .. 0.1
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse softplus

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Leaf]:
        dtype = recurrent_dtype(dtype)
        S = torch.zeros(batch, self.heads, self.d_k, self.d_v, dtype=dtype, device=device)
        leaves: dict[str, Leaf] = {"S": S}
        for name in ("q_conv", "k_conv", "v_conv") if self.split else ("conv",):
            leaves[name] = self.get_submodule(name).init_state(batch, dtype, device)  # type: ignore[operator]
        return leaves

    def forward(self, x: Tensor, state: dict[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        S = state["S"]
        assert isinstance(S, Tensor)
        rows, windows = self._qkv(x, state, step)
        a, b, z = (proj(x, step.route).to(S.dtype) for proj in (self.in_proj_a, self.in_proj_b, self.in_proj_z))
        A_log, dt_bias, gain = (part.to(S.dtype) for part in (self.A_log, self.dt_bias, self.norm.gain))
        hard, eps = self.gate == "hard", self.norm.eps
        sizes = (self.k_heads, hard, self.beta_scale, self.qk_eps, eps)
        y, k, delta, g, S_end = gated_delta_mix(
            rows, a, b, z, A_log, dt_bias, gain, S, step.padding, *sizes, tree=step.tree
        )
        pending = Outer(S, ((k, delta),), g.unsqueeze(-1)) if step.journal else Final(S_end)
        return self.out_proj(y.to(x.dtype), step.route), {"S": pending, **windows}

    def _qkv(self, x: Tensor, state: dict[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        """q | k | v [B, T, ...] after their convolutions, and the windows that follow."""
        if self.split:
            (q, q_end), (k, k_end), (v, v_end) = (
                conv(proj(x, step.route), state[name], step.tree)
                for name, proj, conv in (
                    ("q_conv", self.q_proj, self.q_conv),
                    ("k_conv", self.k_proj, self.k_conv),
                    ("v_conv", self.v_proj, self.v_conv),
                )
            )
            return torch.cat([q, k, v], -1), {"q_conv": q_end, "k_conv": k_end, "v_conv": v_end}
        mixed, window = self.conv(self.in_proj_qkv(x, step.route), state["conv"], step.tree)
        return mixed, {"conv": window}
