"""Tapes: the rows that softmax attention keeps, the only leaves that grow.

A tape is a value: a length per batch row over a store that forks share. The store remembers how many rows are
claimed; the tape that ends exactly there appends in place, any other copies first. So a fork costs nothing until
it diverges, and no fork ever sees another's rows. Rows behind a tape's end are scratch for provisional forwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROWTH = 256  # rows; a full store grows by half its size and at least this much


@dataclass
class _Store:
    k: Tensor  # [B, H, capacity, D]
    v: Tensor
    claimed: tuple[int, ...]
    written: tuple[Tensor, Tensor, tuple[int, ...]] | None = None  # the newest rows and the lengths they stand behind


class Tape:
    """Keys and values of the tokens so far: `lengths[b]` rows for batch row b."""

    def __init__(self, store: _Store, lengths: tuple[int, ...]) -> None:
        self._store, self.lengths = store, lengths

    @classmethod
    def empty(cls, batch: int, heads: int, d_k: int, d_v: int, *, dtype: torch.dtype, device: torch.device) -> Tape:
        k = torch.zeros(batch, heads, 0, d_k, dtype=dtype, device=device)
        v = torch.zeros(batch, heads, 0, d_v, dtype=dtype, device=device)
        return cls(_Store(k, v, (0,) * batch), (0,) * batch)

    @classmethod
    def of(cls, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tape:
        """A tape over given rows k, v [B, H, L, D]."""
        return cls(_Store(k, v, lengths), lengths)

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """k, v [B, H, longest row, D]; a shorter row's end is scratch."""
        n = max(self.lengths, default=0)
        return self._store.k[:, :, :n], self._store.v[:, :, :n]

    @property
    def nbytes(self) -> int:
        """Bytes of the store behind this tape."""
        return self._store.k.nbytes + self._store.v.nbytes

    def peek(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The rows followed by new ones k, v [B, H, T, D], without appending: row b's new rows start at lengths[b].

        The result may be a view of the store's scratch space and is valid until the next call on this tape.
        """
        uniform = len(set(self.lengths)) <= 1
        length, new = max(self.lengths, default=0), k.shape[2]
        if uniform and length == 0:
            return k, v
        if uniform and (torch.is_grad_enabled() or self._store.claimed != self.lengths):
            old_k, old_v = self.rows
            return torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
        tape = self if self._store.claimed == self.lengths else self._copy(new)
        tape._reserve(length + new)
        tape._write(k, v, (new,) * len(self.lengths))
        return tape._store.k[:, :, : length + new], tape._store.v[:, :, : length + new]

    def append(self, k: Tensor, v: Tensor, n: tuple[int, ...]) -> Tape:
        """A tape with row b's first n[b] of the new rows k, v [B, H, T, D] added."""
        lengths = tuple(a + b for a, b in zip(self.lengths, n, strict=True))
        if not any(n):
            return self
        if torch.is_grad_enabled() and k.requires_grad and len(set(lengths)) == 1:
            old_k, old_v = self.rows
            return Tape.of(torch.cat([old_k, k[:, :, : n[0]]], 2), torch.cat([old_v, v[:, :, : n[0]]], 2), lengths)
        tape = self if self._store.claimed == self.lengths else self._copy(max(n))
        written = tape._store.written
        if written is None or written[0] is not k or written[1] is not v or written[2] != self.lengths:
            tape._reserve(max(lengths))
            tape._write(k, v, n)
        tape._store.claimed = lengths
        return Tape(tape._store, lengths)

    def _copy(self, extra: int) -> Tape:
        k, v = self.rows
        copy = Tape(_Store(k, v, self.lengths), self.lengths)
        copy._resize(k.shape[2] + extra)
        return copy

    def _reserve(self, rows: int) -> None:
        capacity = self._store.k.shape[2]
        if rows > capacity:
            self._resize(max(rows, capacity + max(capacity // 2, GROWTH)))

    def _resize(self, capacity: int) -> None:
        # zeros, because a masked-out NaN in scratch would still reach the output
        used = max(self._store.claimed, default=0)
        for name in ("k", "v"):
            old = getattr(self._store, name)
            new = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
            new[:, :, :used] = old[:, :, :used]
            setattr(self._store, name, new)

    def _write(self, k: Tensor, v: Tensor, n: tuple[int, ...]) -> None:
        self._store.written = (k, v, self.lengths) if min(n) == k.shape[2] else None
        if len(set(self.lengths)) == 1 and len(set(n)) == 1:
            at = slice(self.lengths[0], self.lengths[0] + n[0])
            self._store.k[:, :, at] = k[:, :, : n[0]].detach()
            self._store.v[:, :, at] = v[:, :, : n[0]].detach()
            return
        for b, (length, count) in enumerate(zip(self.lengths, n, strict=True)):
            self._store.k[b, :, length : length + count] = k[b, :, :count].detach()
            self._store.v[b, :, length : length + count] = v[b, :, :count].detach()
