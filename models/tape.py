"""Tapes: the rows that softmax attention keeps, the only leaves that grow.

A tape is a value: a length per batch row over a store that forks share. The store remembers how many rows are
claimed; the tape that ends exactly there appends in place, any other goes on in a store of its own, in front of which
it reads the shared rows. So a fork costs what it adds, and no fork ever sees another's rows; one that goes on for long
makes the shared rows its own, because reading in two places takes time. Rows behind a tape's end are scratch for
provisional forwards; so are those that only a tape claimed which is gone: what was drafted or asked aside.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fluvial.models import kv

GROWTH = 256  # rows; a full store grows by half its size and at least this much
BRANCH_GROWTH = 32  # the same for a fork's own store
CLEAR = 64  # rows of a store that are cleared at once
SEGMENTS = 8  # shared stores that a fork of a fork of a fork reads at most
OWN = 16  # a fork makes the shared rows its own when it added one for so many of them

MANY = 32  # tapes on a store; then those that are gone are forgotten

Rows = tuple[Tensor, Tensor]  # k, v [B, H, L, D]


class Holder(Protocol):
    """A tape or several (`models.tapes`)."""

    def end(self, store: Store) -> tuple[int, ...] | None:
        """Up to where it needs rows of a store; None if none."""
        ...


@dataclass(slots=True)
class Store:
    """The memory of a tape and of its forks."""

    k: Tensor  # [B, H, capacity, D]
    v: Tensor
    claimed: tuple[int, ...]
    written: tuple[Tensor, Tensor, tuple[int, ...]] | None = None  # the newest rows and the lengths they stand behind
    place: tuple[int, int, int, int] | None = None  # see `Tape.place`
    shared: int = 0  # rows that forks read
    tapes: list[weakref.ref[Holder]] = field(default_factory=list)
    clear: int = field(init=False)  # rows that hold numbers; memory behind them was never touched

    def __post_init__(self) -> None:
        self.clear = self.k.shape[2]

    def clear_to(self, rows: int) -> None:
        """At least so many rows hold numbers: a masked-out NaN in scratch would still reach the output."""
        end = min(self.k.shape[2], -(-rows // CLEAR) * CLEAR)
        for stored in (self.k, self.v):
            stored[:, :, self.clear : end] = 0
        self.clear = end

    def add(self, holder: weakref.ref[Holder]) -> None:
        if len(self.tapes) >= MANY:
            self.tapes = [ref for ref in self.tapes if ref() is not None]
        self.tapes.append(holder)

    def held(self, tape: Tape) -> bool:
        """Whether anyone needs rows behind the tape's end."""
        ends = (other.end(self) for ref in self.tapes if (other := ref()) is not None)
        return self.shared > min(tape._own) or any(
            b > a for end in ends if end is not None for a, b in zip(tape._own, end, strict=True)
        )


class Tape:
    """Keys and values of the tokens so far: `lengths[b]` rows for batch row b."""

    def __init__(self, store: Store, lengths: tuple[int, ...], past: tuple[Rows, ...] = ()) -> None:
        """`lengths` counts the rows of `past`, which all batch rows have, and those of the store."""
        self.lengths = lengths
        self._store, self._past = store, past
        self._base = sum(k.shape[2] for k, _ in past)
        self._own = tuple(length - self._base for length in lengths)
        store.add(weakref.ref(self))

    def end(self, store: Store) -> tuple[int, ...] | None:
        return self._own if self._store is store else None

    @classmethod
    def empty(
        cls,
        batch: int,
        heads: int,
        d_k: int,
        d_v: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        int8: bool = False,
    ) -> Tape:
        """No rows yet; with `int8` they will be kept in 8 bits each (`models.kv`), and seen as they are kept."""
        dtype = torch.int8 if int8 else dtype
        k = torch.zeros(batch, heads, 0, kv.width(d_k, int8=int8), dtype=dtype, device=device)
        v = torch.zeros(batch, heads, 0, kv.width(d_v, int8=int8), dtype=dtype, device=device)
        return cls(Store(k, v, (0,) * batch), (0,) * batch)

    @classmethod
    def of(cls, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tape:
        """A tape over given rows k, v [B, H, L, D], as `stored` gives them."""
        return cls(Store(k, v, lengths), lengths)

    @property
    def rows(self) -> Rows:
        """k, v [B, H, longest row, D]; a shorter row's end is scratch. In fp32 where they are kept in 8 bits."""
        return self._read(max(self._own, default=0), torch.float32)

    @property
    def stored(self) -> Rows:
        """The rows as they are kept."""
        return self._joined(max(self._own, default=0))

    def between(self, start: int, end: int) -> Rows:
        """Rows start to end, copied."""
        parts, at = [], 0
        for k, v in (*self._past, (self._store.k, self._store.v)):
            span = slice(max(0, start - at), max(0, end - at))
            parts.append((k[:, :, span], v[:, :, span]))
            at += k.shape[2]
        return _one(tuple(parts))

    @property
    def int8(self) -> bool:
        """Whether rows are kept in 8 bits."""
        return self._store.k.dtype is torch.int8

    @property
    def nbytes(self) -> int:
        """Bytes of the stores behind this tape, also those that it shares."""
        return sum(self.storages().values())

    def storages(self) -> dict[int, int]:
        """Bytes of each block of memory by an id of its own: summed over several tapes, what they share counts once."""
        pairs = (*self._past, (self._store.k, self._store.v))
        blocks = (tensor.untyped_storage() for pair in pairs for tensor in pair)
        return {block._cdata: block.nbytes() for block in blocks}

    @property
    def whole(self) -> bool:
        """Whether all rows lie in one store, as they were given."""
        return not self._past and not self.int8

    @property
    def store(self) -> Store:
        return self._store

    @property
    def stores(self) -> Rows:
        """k, v [B, H, capacity, D] of a `whole` tape; what lies behind a row's length is scratch."""
        return self._store.k, self._store.v

    @property
    def place(self) -> tuple[int, int, int, int]:
        """The addresses of the stores, and how many values apart heads and batch rows are."""
        store = self._store
        if store.place is None:
            store.place = store.k.data_ptr(), store.v.data_ptr(), store.k.stride(1), store.k.stride(0)
        return store.place

    def ready(self, more: int) -> Tape:
        """A tape of the same rows that may write `more` behind each: this one, unless another went on from it."""
        tape = self._writable()
        tape._reserve(max(tape._own, default=0) + more)
        tape._store.written = None
        return tape

    def wrote(self, k: Tensor, v: Tensor) -> None:
        """Says that the scratch of a `ready` tape now holds these rows [B, H, T, D]."""
        self._store.written = (k, v, self._own)

    def peek(self, k: Tensor, v: Tensor) -> Rows:
        """The rows followed by new ones k, v [B, H, T, D], without appending: row b's new rows start at lengths[b].

        The result may be a view of the store's scratch space and is valid until the next call on this tape.
        """
        uniform = len(set(self.lengths)) <= 1
        length, new = max(self._own, default=0), k.shape[2]
        if uniform and length == self._base == 0 and not self.int8:
            return k, v
        if uniform and torch.is_grad_enabled() and not self.int8:
            old_k, old_v = self.rows
            return torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
        tape = self._writable()
        tape._reserve(max(tape._own) + new)
        tape._write(k, v, (new,) * len(self.lengths))
        return tape._read(max(tape._own) + new, k.dtype)

    def append(self, k: Tensor, v: Tensor, n: tuple[int, ...]) -> Tape:
        """A tape with row b's first n[b] of the new rows k, v [B, H, T, D] added."""
        lengths = tuple(a + b for a, b in zip(self.lengths, n, strict=True))
        if not any(n):
            return self
        if torch.is_grad_enabled() and k.requires_grad and len(set(lengths)) == 1 and not self.int8:
            old_k, old_v = self.rows
            return Tape.of(torch.cat([old_k, k[:, :, : n[0]]], 2), torch.cat([old_v, v[:, :, : n[0]]], 2), lengths)
        tape, written = self, self._store.written
        if written is None or written[0] is not k or written[1] is not v or written[2] != self._own:
            tape = self._writable()
            tape._reserve(max(a + b for a, b in zip(tape._own, n, strict=True)))
            tape._write(k, v, n)
        store = tape._store
        store.claimed = tuple(max(a + b, c) for a, b, c in zip(tape._own, n, store.claimed, strict=True))
        longer = Tape(store, lengths, tape._past)
        return longer if max(longer._own) * OWN <= longer._base or not longer._past else longer._whole()

    def _read(self, own: int, dtype: torch.dtype) -> Rows:
        k, v = self._joined(own)
        return (kv.decode(k, dtype), kv.decode(v, dtype)) if self.int8 else (k, v)

    def _joined(self, own: int) -> Rows:
        k, v = self._store.k[:, :, :own], self._store.v[:, :, :own]
        if not self._past:
            return k, v
        return torch.cat([*(old for old, _ in self._past), k], 2), torch.cat([*(old for _, old in self._past), v], 2)

    def _writable(self) -> Tape:
        """This tape, if its store ends where it does; else one with the same rows and a store of its own."""
        if self._store.claimed == self._own:
            return self
        if not self._store.held(self):
            self._store.claimed = self._own
            return self
        if len(set(self.lengths)) > 1:
            return self._whole()
        if own := max(self._own, default=0):  # kept, so that all forks of this tape share what is copied here
            self._store.shared = max(own, self._store.shared)
            past = (*self._past, (self._store.k[:, :, :own], self._store.v[:, :, :own]))
            self._past = past if len(past) <= SEGMENTS else (past[0], _one(past[1:]))
            self._base, self._own = self._base + own, (0,) * len(self._own)
            self._store = self._empty_store()
        return Tape(self._empty_store(), self.lengths, self._past)

    def _empty_store(self) -> Store:
        k, v = (rows.new_empty(*rows.shape[:2], 0, rows.shape[3]) for rows in (self._store.k, self._store.v))
        return Store(k, v, (0,) * len(self.lengths))

    def _whole(self) -> Tape:
        """The same rows in one store."""
        k, v = self.stored
        whole = Tape(Store(k, v, self.lengths), self.lengths)
        whole._resize(k.shape[2] + GROWTH)
        return whole

    def _reserve(self, rows: int) -> None:
        if rows <= self._store.clear:
            return
        capacity = self._store.k.shape[2]
        if rows > capacity:
            self._resize(max(rows, capacity + max(capacity // 2, BRANCH_GROWTH if self._past else GROWTH)))
        self._store.clear_to(rows)

    def _resize(self, capacity: int) -> None:
        store = self._store
        store.clear, store.place = max(store.claimed, default=0), None
        for name in ("k", "v"):
            old = getattr(store, name)
            new = old.new_empty(*old.shape[:2], capacity, old.shape[3])
            new[:, :, : store.clear] = old[:, :, : store.clear]
            setattr(store, name, new)

    def _write(self, k: Tensor, v: Tensor, n: tuple[int, ...]) -> None:
        self._store.written = (k, v, self._own) if min(n) == k.shape[2] else None
        if self.int8:
            k, v = kv.encode(k), kv.encode(v)
        if len(set(self._own)) == 1 and len(set(n)) == 1:
            at = slice(self._own[0], self._own[0] + n[0])
            self._store.k[:, :, at] = k[:, :, : n[0]].detach()
            self._store.v[:, :, at] = v[:, :, : n[0]].detach()
            return
        for b, (length, count) in enumerate(zip(self._own, n, strict=True)):
            self._store.k[b, :, length : length + count] = k[b, :, :count].detach()
            self._store.v[b, :, length : length + count] = v[b, :, :count].detach()


def _one(past: tuple[Rows, ...]) -> Rows:
    return torch.cat([k for k, _ in past], 2), torch.cat([v for _, v in past], 2)
