"""`Tapes`: the tapes of all layers at the same place, which a native step moves on together.

A tape of each is made only when somebody asks: 28 layers of small objects cost a step more than reading their state.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fluvial.models.tape import Holder, Store, Tape


@dataclass(frozen=True, slots=True)
class Places:
    """Where stores lie (`Tape.place`): the addresses of keys and values in turn; how far apart heads and batch rows
    are, each distance once, and which of them is whose."""

    each: tuple[tuple[int, int, int, int], ...]
    addresses: tuple[int, ...] = field(init=False)
    steps: tuple[tuple[int, int], ...] = field(init=False)
    which: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        steps = tuple(dict.fromkeys(place[2:] for place in self.each))
        object.__setattr__(self, "addresses", tuple(address for place in self.each for address in place[:2]))
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "which", tuple(steps.index(place[2:]) for place in self.each))


class Tapes:
    """Whole tapes of the same lengths over these stores, each of which ends where they do."""

    __slots__ = ("__weakref__", "_made", "_stores", "lengths", "places")

    def __init__(self, stores: Sequence[Store], places: Places, lengths: tuple[int, ...]) -> None:
        self._stores, self.places, self.lengths = stores, places, lengths
        self._made: tuple[Tape, ...] | None = None
        reference: weakref.ref[Holder] = weakref.ref(self)
        for store in stores:
            store.claimed = lengths
            store.add(reference)

    @classmethod
    def of(cls, tapes: Sequence[Tape]) -> Tapes | None:
        """These, if they are `ready`; None for such as differ in their lengths or do not lie in one store each."""
        lengths = tapes[0].lengths if tapes else ()
        if any(not tape.whole or tape.lengths != lengths for tape in tapes):
            return None
        return cls([tape.store for tape in tapes], Places(tuple(tape.place for tape in tapes)), lengths)

    def end(self, store: Store) -> tuple[int, ...] | None:
        """Up to where they need a store's rows; None once the tapes made of them say it themselves."""
        return self.lengths if self._made is None else None

    def all(self) -> tuple[Tape, ...]:
        """Each as a tape."""
        if self._made is None:
            self._made = tuple(Tape(store, self.lengths) for store in self._stores)
        return self._made

    def ready(self, more: int) -> Tapes | None:
        """Tapes of the same rows that may write `more` behind each, as `Tape.ready`."""
        rows = max(self.lengths, default=0) + more
        for store, place in zip(self._stores, self.places.each, strict=True):
            if store.claimed != self.lengths or store.clear < rows or store.place is not place:
                return Tapes.of([tape.ready(more) for tape in self.all()])
            store.written = None
        return self

    def claim(self, n: int) -> Tapes:
        """As `Tape.claim`, of all."""
        return Tapes(self._stores, self.places, tuple(length + n for length in self.lengths))

    def about(self) -> Any:
        """What `attend` is told about stores of each of the steps in `places`, an int64 array."""
        numbers = [number for step in self.places.steps for number in (*step, *self.lengths)]
        return (ctypes.c_int64 * len(numbers))(*numbers)
