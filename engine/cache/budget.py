"""`Budget`: one number of bytes for all that the cache holds, and what goes first when it is full.

Every item stands at a priority: a clock, plus how often it was used times the work that it saves per byte. The lowest
goes, and the clock moves up to it, so that what is not used sinks (GreedyDual-Size-Frequency; Cherkasova 1998).
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from itertools import count


class Item(ABC):
    """Something that takes up bytes. `work`: tokens of the decoder that it saves."""

    __slots__ = ("alive", "held", "hits", "nbytes", "priority", "stamp", "work")

    def __init__(self) -> None:
        self.alive, self.held, self.hits, self.nbytes = True, False, 0, 0
        self.work, self.priority, self.stamp = 0.0, 0.0, -1

    @property
    @abstractmethod
    def evictable(self) -> bool:
        """Whether it may go now."""

    @abstractmethod
    def evict(self) -> None:
        """Gives bytes back to the budget."""


class Budget:
    """`used` never exceeds `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used, self.peak, self.evicted = limit, 0, 0, 0
        self._clock, self._stamps = 0.0, count()
        self._heap: list[tuple[float, int, Item]] = []
        self._tidy_at = 1000

    def reserve(self, nbytes: int, held: Item | None = None) -> bool:
        """Makes room and takes it; False where it cannot be had, or not without `held`."""
        if nbytes > self.limit:
            return False
        if held is not None:
            held.held = True
        while self.used + nbytes > self.limit and self._heap:
            priority, stamp, item = heapq.heappop(self._heap)
            if item.alive and stamp == item.stamp and item.evictable and not item.held:
                self._clock, self.evicted = max(self._clock, priority), self.evicted + 1
                item.evict()
        if held is not None:
            held.held = False
            self.queue(held)
        if self.used + nbytes > self.limit:
            return False
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        return True

    def release(self, nbytes: int) -> None:
        self.used -= nbytes

    def touch(self, item: Item) -> None:
        """The item is new or was of use."""
        item.hits += 1
        item.priority = self._clock + item.hits * item.work / max(1, item.nbytes)
        self.queue(item)

    def queue(self, item: Item) -> None:
        """The item may go when its priority is the lowest."""
        item.stamp = next(self._stamps)
        heapq.heappush(self._heap, (item.priority, item.stamp, item))
        if len(self._heap) > self._tidy_at:  # most of it is stale
            self._heap = [entry for entry in self._heap if entry[2].alive and entry[1] == entry[2].stamp]
            heapq.heapify(self._heap)
            self._tidy_at = max(1000, 2 * len(self._heap))
