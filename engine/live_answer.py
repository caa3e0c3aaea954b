"""`LiveAnswer`: an answer that the engine's thread makes and another thread reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue

from fluvial.adapters.errors import FluvialError
from fluvial.engine.events import Event

Sink = Callable[[Event | BaseException | None], None]  # None: the end


class LiveAnswer(Iterator[Event]):
    """Iterating gives `Token`s, then `Done`; an error of the engine is raised here. `close` cancels it within a token.
    `t` is the stream time, in seconds, of the last frame that it knows of; None before any frame."""

    def __init__(self, commit: bool, sink: Sink | None = None) -> None:
        self.commit = commit
        self.t: float | None = None
        self._queue: SimpleQueue[Event | BaseException | None] = SimpleQueue()
        self._sink = sink or self._queue.put
        self._events: Iterator[Event] | None = None
        self._cancelled = self._ended = False

    # --- for the reader -----------------------------------------------------------------------------------------

    def __next__(self) -> Event:
        event = None if self._ended else self._queue.get()
        if isinstance(event, BaseException):
            self._ended = True
            raise event
        if event is None:
            self._ended = True
            raise StopIteration
        return event

    def close(self) -> None:
        """Cancels: the engine stops within one token, and a committed answer keeps what was given out so far."""
        self._cancelled = True

    # --- for the engine's thread --------------------------------------------------------------------------------

    def begin(self, events: Callable[[], Iterator[Event]], t: float | None) -> None:
        """The engine got to it: `events` starts the answer."""
        self.t = t
        try:
            self._events = events()
        except FluvialError as error:
            self.end(error)

    def step(self) -> bool:
        """Makes one token; False when the answer is over. What is wrong with the question is the reader's error."""
        if self._events is None:
            return False
        try:
            if self._cancelled:
                self.end(None)
                return False
            self._sink(next(self._events))
            return True
        except StopIteration:
            self.end(None)
        except FluvialError as error:
            self.end(error)
        return False

    def end(self, error: BaseException | None) -> None:
        """Closes the answer and tells the reader, once."""
        events, self._events = self._events, None
        try:
            if events is not None and hasattr(events, "close"):
                events.close()
        finally:
            self._sink(error)
