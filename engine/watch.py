"""`Watch`: a standing question about a live stream, asked aside again and again; its answers are observations."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Condition
from typing import Any

from fluvial.adapters.errors import UsageError
from fluvial.encoders.frame import Frame
from fluvial.engine.events import Done, Event
from fluvial.engine.live_answer import LiveAnswer

KEPT = 256  # observations that wait for a slow reader; older ones are lost, and counted


@dataclass(frozen=True)
class Observation:
    """What the model said about the stream up to second `t`."""

    t: float
    text: str
    done: Done


class Watch(Iterator[Observation]):
    """Iterating waits for the next observation; `close` ends it. `lost` counts what a slow reader missed."""

    def __init__(
        self, question: str, every: float | None, when: Callable[[Frame], bool] | None, options: dict[str, Any]
    ) -> None:
        """Asks every `every` seconds of the stream, or at frames for which `when` is true. Errors: UsageError."""
        if (every is None) == (when is None):
            raise UsageError("When is the question to be asked?", "", "Give either `every`, in seconds, or `when`.")
        if every is not None and not (0 < every < math.inf):
            raise UsageError(f"every is {every}.", "It must be a positive number of seconds.")
        if not question.strip():
            raise UsageError("The question is empty.")
        self.question, self.options, self.lost, self.closed = question, options, 0, False
        self.answer: LiveAnswer | None = None  # the one being made
        self._every, self._when, self._next = every, when, math.nan
        self._ready: deque[Observation] = deque()
        self._changed = Condition()
        self._error: BaseException | None = None

    # --- for the reader -----------------------------------------------------------------------------------------

    def __next__(self) -> Observation:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self.closed)
            if self._ready:
                return self._ready.popleft()
            if self._error is not None:
                raise self._error
            raise StopIteration

    def close(self) -> None:
        """No further questions; observations that are ready can still be read."""
        self.end(None)

    # --- for the engine's thread --------------------------------------------------------------------------------

    def due(self, frame: Frame) -> bool:
        """Whether to ask now that `frame` is in memory. What `when` raises ends the watch and reaches its reader."""
        if self.closed:
            return False
        if self._when is not None:
            try:
                return bool(self._when(frame))
            except Exception as error:
                self.end(error)
                return False
        assert self._every is not None
        if math.isnan(self._next) or frame.t < self._next - 2 * self._every:  # the first frame, or time began anew
            self._next = frame.t + self._every
        if frame.t < self._next - 1e-6:
            return False
        self._next += self._every * (math.floor((frame.t - self._next + 1e-6) / self._every) + 1)
        return True

    def begin(self, t: float, events: Callable[[], Iterator[Event]]) -> LiveAnswer:
        """An answer about the stream up to `t`, to be stepped through."""

        def collect(event: Event | BaseException | None) -> None:
            if isinstance(event, Done):
                self._put(Observation(t, event.text, event))
            elif isinstance(event, BaseException):
                self.end(event)

        self.answer = LiveAnswer(False, collect)
        self.answer.begin(events, t)
        return self.answer

    def end(self, error: BaseException | None) -> None:
        """Nothing comes any more; the reader gets `error` behind what is ready."""
        with self._changed:
            if not self.closed:
                self._error, self.closed = error, True
            self._changed.notify_all()
        if self.answer is not None:
            self.answer.close()

    def _put(self, observation: Observation) -> None:
        with self._changed:
            if len(self._ready) >= KEPT:
                self._ready.popleft()
                self.lost += 1
            self._ready.append(observation)
            self._changed.notify_all()
