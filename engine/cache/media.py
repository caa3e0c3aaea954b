"""What the encoder gave for media that were seen: facts, and embeddings for as long as there is room."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from fluvial.encoders.frame import Frame
from fluvial.engine.cache.budget import Budget, Item
from fluvial.engine.cache.key import Key, file_stamp, medium_key
from fluvial.engine.media import Facts, Medium, Step

if TYPE_CHECKING:
    from fluvial.engine.cache.cache import StateCache

RECORD = 1024  # bytes of a record without its steps, about


class Record(Item):
    """A medium that was seen: its facts, and its steps or None."""

    __slots__ = ("facts", "key", "media", "steps")

    def __init__(self, media: Media, key: str, facts: Facts, steps: tuple[Step, ...] | None, nbytes: int) -> None:
        super().__init__()
        self.media, self.key, self.facts, self.steps, self.nbytes = media, key, facts, steps, nbytes
        self.work = facts.tokens * (1.0 if steps is None else media.effort)

    @property
    def evictable(self) -> bool:
        return True

    def evict(self) -> None:
        self.media.evict(self)


class Media:
    """All records by key. `effort`: what encoding a token costs, in tokens of the decoder."""

    def __init__(self, budget: Budget, effort: float) -> None:
        self.budget, self.effort, self.records = budget, effort, dict[str, Record]()

    def put(self, key: str, facts: Facts, steps: tuple[Step, ...] | None, nbytes: int) -> None:
        """Keeps a medium whose steps of `nbytes` are in the budget already."""
        if (old := self.records.pop(key, None)) is not None:
            old.alive = False
            self.budget.release(old.nbytes)
        if not self.budget.reserve(RECORD):
            self.budget.release(nbytes)
            return
        record = self.records[key] = Record(self, key, facts, steps, nbytes + RECORD)
        self.budget.touch(record)

    def evict(self, record: Record) -> None:
        """Takes the steps away, or the record where they are gone."""
        if record.steps is None:
            record.alive = False
            del self.records[record.key]
            self.budget.release(record.nbytes)
            return
        self.budget.release(record.nbytes - RECORD)
        record.steps, record.nbytes, record.work = None, RECORD, float(record.facts.tokens)
        self.budget.touch(record)


def bytes_of(step: Step) -> int:
    """Bytes of a step's tensors."""
    x, layout = step
    return x.nbytes + (0 if layout.positions is None else layout.positions.nbytes)


class Look:
    """A medium before a session: what the cache knows of it (`facts`, `steps`), and where it takes in what is read."""

    def __init__(self, cache: StateCache, key: Key, medium: Medium | list[Frame]) -> None:
        self._cache, self._medium, self._stamp = cache, medium, file_stamp(medium)
        self.key = medium_key(key, medium)
        record = cache.record(self.key)
        self.facts = None if record is None else record.facts
        self.steps = None if record is None else record.steps
        self._taken: list[Step] | None = []
        self._reserved = 0

    def add(self, step: Step) -> None:
        """Takes a step, unless there is no room for all so far."""
        if self._taken is None:
            return
        x, layout = step
        x = x.detach()
        alone = x.untyped_storage().nbytes() == x.nbytes
        nbytes = bytes_of(step)
        if not self._cache.reserve(nbytes, of=self._reserved):
            self.drop()
            return
        self._reserved += nbytes
        self._taken.append((x if alone else x.clone(), layout))

    def drop(self) -> None:
        """Forgets what was taken."""
        self._cache.release(self._reserved)
        self._taken, self._reserved = None, 0

    def finish(self, facts: Facts) -> None:
        """The medium was read to its end."""
        if file_stamp(self._medium) != self._stamp:  # nobody knows what was read
            self.key = uuid.uuid4().hex
            self.drop()
            return
        steps, nbytes = self._taken, self._reserved
        self._taken, self._reserved = None, 0
        self._cache.keep_medium(self.key, facts, None if steps is None else tuple(steps), nbytes)
