"""Softmax attention: grouped queries, rotary positions, optional output gate, q/k norm, sliding window with sinks.

Without a window the leaf is a tape that grows by one row a token. With one it is a ring of fixed size: the first
`sinks` tokens (Xiao et al. 2023) and the last `window`, so memory is constant.

Letters: B batch, T tokens, H query heads, G key/value heads, D head width, R ring slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluvial.adapters.linear import Linear
from fluvial.adapters.norm import RMSNorm, rms_norm
from fluvial.adapters.ops import op
from fluvial.models import kv
from fluvial.models.journal import Append, Count, Pending
from fluvial.models.mixer import Mixer, Step, mixer
from fluvial.models.rotary import FEW, Scaling, next_tables, rotary_tables, rotate
from fluvial.models.state import Leaf
from fluvial.models.tape import Tape
from fluvial.models.tree import Tree


@op
def head_rows(
    x: Tensor, gain: Tensor | None, cos: Tensor | None, sin: Tensor | None, offset: float, eps: float
) -> Tensor:
    """Queries or keys x [B, T, H, D] through RMS norm over each head with gain [D], if any, and rotation by cos, sin
    [B, T, 1, R], if any."""
    if gain is not None:
        wide = x if x.dtype == torch.float64 else x.float()
        x = rms_norm(wide, gain.to(wide.dtype), offset, eps).to(x.dtype)
    return x if cos is None or sin is None else rotate(x, cos, sin)


@op
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_store: Tensor,
    v_store: Tensor,
    before: tuple[int, ...],
    scale: float | None,
) -> Tensor:
    """q [B, T, H, D] over a tape's stores [B, G, R, D] and the new rows k, v [B, T, G, D], which are written behind row
    b's first before[b]; query t sees before[b] + t + 1 -> [B, T, H, D]."""
    tokens = k.shape[1]
    for b, at in enumerate(before):
        k_store[b, :, at : at + tokens] = k[b].transpose(0, 1)
        v_store[b, :, at : at + tokens] = v[b].transpose(0, 1)
    rows = max(before) + tokens
    return seen(q, k_store[:, :, :rows], v_store[:, :, :rows], before, scale)


def seen(
    q: Tensor, k: Tensor, v: Tensor, before: tuple[int, ...], scale: float | None, tree: Tree | None = None
) -> Tensor:
    """q [B, T, H, D]; k, v [B, G, L, D], of which query t of row b sees the first before[b] + t + 1 (of the T new ones
    in a tree, its ancestors and itself) -> [B, T, H, D]."""
    tokens, heads, mask = q.shape[1], q.shape[2], None
    if tree is not None:
        new = torch.arange(k.shape[2], device=k.device) - torch.tensor(before, device=k.device)[:, None]  # [B, L]
        inside = tree.ancestors[:, new.clamp(0, tokens - 1)].transpose(0, 1) & (new < tokens)[:, None]  # [B, T, L]
        mask = (inside | (new < 0)[:, None])[:, None]
    elif len(set(before)) > 1 or (tokens > 1 and before[0]):
        last = torch.tensor(before, device=k.device)[:, None] + torch.arange(tokens, device=k.device)
        mask = torch.arange(k.shape[2], device=k.device) <= last[:, None, :, None]
    return F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None and tokens > 1,
        scale=scale,
        enable_gqa=heads != k.shape[1],
    ).transpose(1, 2)


@op
def sigmoid_gate(x: Tensor, gate: Tensor) -> Tensor:
    """x, gate [...] -> x sigmoid(gate)."""
    return x * gate.sigmoid()


@mixer("attention")
class Attention(Mixer):
    """Causal softmax attention. `rotary` is the share of the head that rotates (0: no positions); `sections` deal its
    frequencies out to the axes of media positions (time, row, column); `scaling` has the fields of `Scaling`.
    `qk_norm` is "rms" or "rms1" over each head, "whole" over all heads at once; scores are multiplied by `scale`
    (1 / sqrt(D) where none is given)."""

    trees = True

    def __init__(
        self,
        d_model: int,
        *,
        heads: int,
        kv_heads: int | None = None,
        d_head: int | None = None,
        theta: float = 10000.0,
        rotary: float = 1.0,
        sections: Sequence[int] = (),
        scaling: Mapping[str, Any] | None = None,
        window: int = 0,
        sinks: int = 0,
        gate: bool = False,
        qk_norm: str = "",
        bias: bool = False,
        out_bias: bool = False,
        norm_eps: float = 1e-6,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.d_head = heads, kv_heads or heads, d_head or d_model // heads
        self.theta, self.rotary, self.window, self.sinks, self.gate = (
            theta,
            int(rotary * self.d_head),
            window,
            sinks,
            gate,
        )
        self.int8, self.bounded = False, window > 0
        self.sections, self.scaling = tuple(sections), Scaling(**scaling) if scaling else None
        self.q_proj = Linear(d_model, self.heads * self.d_head * (2 if gate else 1), bias)
        self.k_proj = Linear(d_model, self.kv_heads * self.d_head, bias)
        self.v_proj = Linear(d_model, self.kv_heads * self.d_head, bias)
        self.o_proj = Linear(self.heads * self.d_head, d_model, out_bias)
        self.scale, self.whole_norm = scale, qk_norm == "whole"
        self.q_norm, self.k_norm = (
            RMSNorm(self.d_head * (heads if self.whole_norm else 1), norm_eps, offset=float(qk_norm == "rms1"))
            if qk_norm
            else nn.Identity()
            for heads in (self.heads, self.kv_heads)
        )

    def keep(self, mode: str) -> bool:
        """Keeps rows as a mode of `models.kv` says, unless the model's own window says otherwise; whether it did."""
        window = kv.window_of(mode)
        if self.bounded:
            return False
        self.int8, self.window, self.sinks = mode == "int8", window, kv.SINKS if window else 0
        return True

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Leaf]:
        if not self.window:
            shape = batch, self.kv_heads, self.d_head, self.d_head
            return {"kv": Tape.empty(*shape, dtype=dtype, device=device, int8=self.int8)}
        shape = (batch, self.kv_heads, self.sinks + self.window, self.d_head)
        return {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("k", "v")}

    def forward(self, x: Tensor, state: dict[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        q = self.q_proj(x, step.route).unflatten(-1, (self.heads, -1))
        if self.gate:  # per head [q | gate]
            q, gate = q.chunk(2, -1)
        k = self.k_proj(x, step.route).unflatten(-1, (self.kv_heads, -1))
        v = self.v_proj(x, step.route).unflatten(-1, (self.kv_heads, -1))
        q, k = self._rows(q, self.q_norm, step), self._rows(k, self.k_norm, step).to(v.dtype)
        pending: dict[str, Pending]
        if self.window:
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
            o, pending = self._attend_ring(q, k, v, state, step)
            o = o.transpose(1, 2)
        else:
            o, pending = self._attend_tape(q.to(v.dtype), k, v, state["kv"], step)
        if self.gate:
            o = sigmoid_gate(o, gate)
        return self.o_proj(o.flatten(-2), step.route), pending

    def _rows(self, x: Tensor, norm: nn.Module, step: Step) -> Tensor:
        """Queries or keys x [B, T, H, D], normed and rotated."""
        gain, offset, eps, cos, sin = None, 0.0, 0.0, None, None
        if self.whole_norm:
            x = norm(x.flatten(-2)).view_as(x)
        elif isinstance(norm, RMSNorm):
            gain, offset, eps = norm.gain, norm.offset, norm.eps
        if self.rotary:
            key = ("rotary", self.rotary, self.theta, self.sections, self.scaling, x.dtype)
            cos, sin = step.memo(key, lambda step: self._tables(step, x.dtype))
        return x if gain is None and cos is None else head_rows(x, gain, cos, sin, offset, eps)

    def _tables(self, step: Step, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos, sin [B, T, 1, R]."""
        if step.tokens <= FEW and (start := step.next_rotary) is not None and step.device.type == "cpu":
            return next_tables(start, step.tokens, self.rotary, self.theta, self.scaling, dtype)
        tables = rotary_tables(step.rotary, self.rotary, self.theta, self.sections, self.scaling)
        cos, sin = tables.to(dtype).transpose(2, 3).unbind()
        return cos, sin

    def _attend_tape(
        self, q: Tensor, k: Tensor, v: Tensor, tape: Leaf, step: Step
    ) -> tuple[Tensor, dict[str, Pending]]:
        assert isinstance(tape, Tape)
        rows = k.transpose(1, 2), v.transpose(1, 2)
        if torch.is_grad_enabled() or step.tree is not None or tape.int8:
            o = seen(q, *tape.peek(*rows), tape.lengths, self.scale, step.tree)
        elif (tape := tape.ready(k.shape[1])).whole:
            o = attend(q, k, v, *tape.stores, tape.lengths, self.scale)
            tape.wrote(*rows)
        else:  # a fork's rows, joined
            o = attend(q, k, v, *tape.peek(*rows), tape.lengths, self.scale)
        return o, {"kv": Append(tape, *rows)}

    def _attend_ring(
        self, q: Tensor, k: Tensor, v: Tensor, state: dict[str, Leaf], step: Step
    ) -> tuple[Tensor, dict[str, Pending]]:
        old_k, old_v = state["k"], state["v"]
        assert isinstance(old_k, Tensor) and isinstance(old_v, Tensor)
        start = step.positions[:, :1]
        held = ring_positions(start, self.sinks, self.window)  # [B, R], -1 where empty
        key = torch.cat([held, step.positions], 1)[:, None, None, :]
        query = step.positions[:, None, :, None]
        mask = (key >= 0) & (key <= query) & ((key > query - self.window) | (key < self.sinks))
        if step.tree is not None:
            mask[..., held.shape[1] :] &= step.tree.ancestors
        k, v = k.to(old_k.dtype), v.to(old_v.dtype)
        o = F.scaled_dot_product_attention(
            q.to(v.dtype),
            torch.cat([old_k, k], 2),
            torch.cat([old_v, v], 2),
            attn_mask=mask,
            scale=self.scale,
            enable_gqa=self.heads != self.kv_heads,
        )
        return o, {
            "k": Ring(old_k, k, start, self.sinks, self.window),
            "v": Ring(old_v, v, start, self.sinks, self.window),
        }


def ring_positions(end: Tensor, sinks: int, window: int) -> Tensor:
    """end [B, 1] tokens so far -> the position that each of sinks + window slots holds, int64 [B, R]; -1 for none."""
    slot = torch.arange(sinks + window, device=end.device)[None, :]
    turn = slot - sinks
    latest = (
        end - 1 - (end - 1 - sinks - turn) % window
    )  # the newest position p < end with (p - sinks) % window == turn
    position = torch.where(slot < sinks, slot, latest)
    return torch.where((position < end) & ((slot < sinks) | (position >= sinks)), position, -1)


@dataclass(frozen=True)
class Ring:
    """A ring leaf [B, G, R, D] and the new rows [B, G, T, D] that follow it."""

    old: Tensor
    new: Tensor
    start: Tensor
    sinks: int
    window: int

    def commit(self, n: Count) -> Leaf:
        end = self.start + torch.tensor(n, device=self.start.device)[:, None]
        fresh = ring_positions(end, self.sinks, self.window) - self.start  # index among the new rows, < 0: keep the old
        index = fresh.clamp(min=0)[:, None, :, None].expand_as(self.old)
        return torch.where((fresh >= 0)[:, None, :, None], self.new.gather(2, index), self.old)

    def along(self, path: Tensor) -> Pending:
        return replace(self, new=self.new[:, :, path])

    @property
    def nbytes(self) -> int:
        return self.old.nbytes + self.new.nbytes
