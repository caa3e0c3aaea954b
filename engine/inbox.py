"""`Inbox`: a bounded queue between those who push and the one thread that feeds, with a rule for when it is full."""

from __future__ import annotations

from collections import deque
from threading import Condition
from typing import Any, Literal, get_args

from fluvial.adapters.errors import FluvialError, UsageError

Overflow = Literal["drop_oldest", "drop_newest", "block"]


class Inbox:
    """At most `size` items that may be dropped wait at once. One that may not be dropped (a text, a question) is never
    lost: it waits for room, whatever the rule, and keeps its place in the order."""

    def __init__(self, size: int, overflow: Overflow) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(f"The queue's size is {size!r}.", "It must hold at least one frame.")
        if overflow not in get_args(Overflow):
            raise UsageError(f"Unknown overflow rule {overflow!r}.", hint=f"One of {', '.join(get_args(Overflow))}.")
        self.size, self.overflow = size, overflow
        self._items: deque[tuple[Any, bool]] = deque()
        self._changed = Condition()
        self._error: FluvialError | None = None

    def put(self, item: Any, *, droppable: bool, timeout: float | None = None) -> tuple[bool, int]:
        """Whether the item was taken, and how many were dropped for it (itself included). Raises what the inbox was
        closed with; FluvialError after `timeout` seconds without room."""
        with self._changed:
            self._raise()
            if self._full() and droppable and self.overflow == "drop_newest":
                return False, 1
            dropped = 0
            if self._full() and self.overflow == "drop_oldest":
                dropped = self._drop_oldest()
                if self._full() and droppable:
                    return False, 1
            if not self._changed.wait_for(lambda: self._error or not self._full(), timeout):
                raise FluvialError("The queue stayed full.", f"Nothing was taken from it for {timeout:g} s.")
            self._raise()
            self._items.append((item, droppable))
            self._changed.notify_all()
            return True, dropped

    def take(self, timeout: float | None = 0.0) -> Any:
        """The next item; None if there is none within `timeout` seconds (None: for ever) or the inbox is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._error, timeout)
            if not self._items or self._error:
                return None
            item, _ = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self, error: FluvialError) -> list[Any]:
        """From now on every `put` raises `error`; gives the items that nobody took."""
        with self._changed:
            self._error = self._error or error
            rest = [item for item, _ in self._items]
            self._items.clear()
            self._changed.notify_all()
            return rest

    @property
    def closed(self) -> bool:
        return self._error is not None

    def __len__(self) -> int:
        return len(self._items)

    def _full(self) -> bool:
        return len(self._items) >= self.size

    def _drop_oldest(self) -> int:
        for at, (_, droppable) in enumerate(self._items):
            if droppable:
                del self._items[at]
                return 1
        return 0

    def _raise(self) -> None:
        if self._error is not None:
            raise type(self._error)(self._error.what, self._error.why, self._error.hint) from self._error
