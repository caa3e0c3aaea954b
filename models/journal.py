"""Journals: what a provisional forward keeps so that any prefix of it can be committed exactly.

`journal.commit(n)` is the state after the first n tokens (n a number, or one per batch row). A leaf's part of the
journal is a `Pending`: one state at most, plus O(T) rows. The same mechanism serves speculation, undo,
cancelling, cache checkpoints inside a chunk, and padded batches (padding is what is never committed).

Letters: B batch, T tokens, H heads, K and V key and value width, G running log decay since the call's start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fluvial.adapters.errors import UsageError
from fluvial.models.rounded import Rounded
from fluvial.models.state import Leaf, State
from fluvial.models.tape import Tape
from fluvial.models.tree import Tree

Count = tuple[int, ...]  # tokens per batch row


class Pending(Protocol):
    """One leaf's next value, for any number of committed tokens."""

    def commit(self, n: Count) -> Leaf: ...
    def along(self, path: Tensor) -> Pending:
        """The same for some of the tokens only, int64 [N]: a root path of a tree."""
        ...

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class Final:
    """The value after all tokens, where no rows were kept."""

    value: Leaf

    def commit(self, n: Count) -> Leaf:
        return self.value

    def along(self, path: Tensor) -> Pending:
        return self

    @property
    def nbytes(self) -> int:
        return self.value.nbytes


@dataclass(frozen=True)
class Window:
    """The last `keep` of a row sequence: short convolutions and token shift. rows [B, keep + T, C], older ones
    first."""

    rows: Tensor
    keep: int

    def commit(self, n: Count) -> Leaf:
        if len(set(n)) == 1:
            return self.rows[:, n[0] : n[0] + self.keep].clone()
        return torch.stack([row[i : i + self.keep] for row, i in zip(self.rows, n, strict=True)])

    def along(self, path: Tensor) -> Pending:
        return Window(torch.cat([self.rows[:, : self.keep], self.rows[:, self.keep + path]], 1), self.keep)

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes


@dataclass(frozen=True)
class Outer:
    """A decayed sum of outer products: S_n = e^{G_n} S + sum_{i <= n} e^{G_n - G_i} left_i right_i^T, G = cumsum(g).

    base [B, H, K, V]; each pair left [B, T, H, K], right [B, T, H, V]; log_decay = g, [B, T, H, 1] or [B, T, H, K].
    """

    base: Tensor
    pairs: tuple[tuple[Tensor, Tensor], ...]
    log_decay: Tensor

    def commit(self, n: Count) -> Leaf:
        if not any(n):
            return self.base
        return self._alike(n[0]) if len(set(n)) == 1 else self._apart(n)

    def _alike(self, n: int) -> Tensor:
        """The first n of every row."""
        G = self.log_decay[:, :n].cumsum(1, dtype=torch.float64)  # long sums, small differences
        end, dtype = G[:, -1:], self.base.dtype
        weight = (end - G).exp().to(dtype)
        left = torch.cat([left[:, :n] * weight for left, _ in self.pairs], 1).permute(0, 2, 3, 1)
        right = torch.cat([right[:, :n] for _, right in self.pairs], 1).transpose(1, 2)
        kept = self.base * end.exp().to(dtype).squeeze(1).unsqueeze(-1)
        return torch.baddbmm(kept.flatten(0, 1), left.flatten(0, 1), right.flatten(0, 1)).view_as(kept)

    def _apart(self, n: Count) -> Tensor:
        at = torch.tensor(n, device=self.base.device)
        G = self.log_decay[:, : max(n)].cumsum(1, dtype=torch.float64)  # long sums, small differences
        G_n = G.gather(1, (at - 1).clamp(min=0).view(-1, 1, 1, 1).expand(-1, 1, *G.shape[2:]))
        G_n = torch.where((at == 0).view(-1, 1, 1, 1), torch.zeros_like(G_n), G_n)
        kept = torch.arange(max(n), device=at.device)[None, :] < at[:, None]
        # mask before the exponential: beyond n the difference is positive and may overflow
        weight = (G_n - G).masked_fill(~kept[:, :, None, None], float("-inf")).exp().to(self.base.dtype)
        total = self.base * G_n.exp().to(self.base.dtype).transpose(1, 2).squeeze(2).unsqueeze(-1)
        for left, right in self.pairs:
            total = total + torch.einsum("bthk,bthv->bhkv", left[:, : max(n)] * weight, right[:, : max(n)])
        return total

    def along(self, path: Tensor) -> Pending:
        pairs = tuple((left[:, path], right[:, path]) for left, right in self.pairs)
        return Outer(self.base, pairs, self.log_decay[:, path])

    @property
    def nbytes(self) -> int:
        rows = sum(left.nbytes + right.nbytes for left, right in self.pairs)
        return self.base.nbytes + rows + self.log_decay.nbytes


@dataclass(frozen=True)
class Append:
    """New tape rows k, v [B, H, T, D]."""

    tape: Tape
    k: Tensor
    v: Tensor

    def commit(self, n: Count) -> Leaf:
        return self.tape.append(self.k, self.v, n)

    def along(self, path: Tensor) -> Pending:
        return Append(self.tape, self.k[:, :, path], self.v[:, :, path])

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes


@dataclass(frozen=True)
class Rounding:
    """A memory that is kept in fewer bits: what `inner` gives, rounded. Rows that commit nothing keep theirs."""

    inner: Pending
    before: Rounded

    def commit(self, n: Count) -> Leaf:
        if not any(n):
            return self.before
        values = self.inner.commit(n)
        assert isinstance(values, Tensor)
        after = Rounded.of(values, self.before.dtype)
        return after if all(n) else self.before.replaced(after, torch.tensor(n, device=values.device) > 0)

    def along(self, path: Tensor) -> Pending:
        return Rounding(self.inner.along(path), self.before)

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes


class Journal:
    """A provisional forward over `state`; nothing has happened until `commit`."""

    def __init__(
        self, state: State, pending: dict[str, Pending], limit: Count, positions: Tensor | None = None
    ) -> None:
        self._state, self._pending, self.limit, self._positions = state, pending, limit, positions

    def commit(self, n: int | Sequence[int]) -> State:
        """The exact state after the first n tokens (of every row, or n[b] of row b); may be called for several n."""
        count = (n,) * len(self.limit) if isinstance(n, int) else tuple(n)
        if len(count) != len(self.limit) or any(not 0 <= c <= top for c, top in zip(count, self.limit, strict=True)):
            raise UsageError(f"Cannot commit {n} tokens.", f"The forward had {list(self.limit)} tokens per row.")
        return self.moved(count, {name: pending.commit(count) for name, pending in self._pending.items()})

    def moved(self, count: Count, leaves: Mapping[str, Leaf]) -> State:
        """The state with these leaves, count[b] tokens further."""
        position = tuple(p + c for p, c in zip(self._state.position, count, strict=True))
        return State(leaves, position, self._state.model, self._shift(count, position), self._state.dtype)

    def _shift(self, count: Count, position: Count) -> tuple[int, ...]:
        """Rotary positions after `count` tokens go on behind the furthest one so far on any axis."""
        if self._positions is None:
            return self._state.shift
        given = self._positions if self._positions.ndim == 2 else self._positions.amax(0)  # [B, T]
        ends = (int(row[:n].max()) + 1 if n else 0 for row, n in zip(given, count, strict=True))
        after = (max(start, end) for start, end in zip(self._state.rotary, ends, strict=True))
        shift = tuple(rotary - p for rotary, p in zip(after, position, strict=True))
        return shift if any(shift) else ()

    @property
    def nbytes(self) -> int:
        """Bytes that the journal holds: at most one state plus O(T) rows."""
        positions = 0 if self._positions is None else self._positions.nbytes
        return sum(pending.nbytes for pending in self._pending.values()) + positions


class TreeJournal:
    """A provisional forward over the nodes of a tree; nothing has happened until `commit`."""

    def __init__(self, state: State, pending: dict[str, Pending], tree: Tree) -> None:
        self._state, self._pending, self.tree = state, pending, tree

    def commit(self, path: Sequence[int]) -> State:
        """The exact state after the nodes of a root path, in their order (of every row); may be called for several.
        Errors: UsageError for what is no root path."""
        if not path:
            return self._state
        nodes = torch.tensor(self.tree.checked(path), device=self.tree.ancestors.device)
        rows = {name: pending.along(nodes) for name, pending in self._pending.items()}
        return Journal(self._state, rows, (len(path),) * self._state.batch).commit(len(path))

    @property
    def nbytes(self) -> int:
        """Bytes that the journal holds: at most one state plus O(T) rows."""
        return sum(pending.nbytes for pending in self._pending.values())
