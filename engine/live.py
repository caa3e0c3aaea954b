"""`LiveSession`: a session that takes frames and texts from any thread for hours, and answers while they come in.

One thread owns the tensors. Frames wait in a bounded queue and are dropped by a rule when they come faster than the
model looks; texts and questions are never dropped. An answer aside (`commit=False`, standing questions) is made on a
fork, token by token between frames, so the stream goes on; a committed one is part of the stream, which waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Self

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.encoders.economy import Economy
from fluvial.encoders.frame import Frame, Gap
from fluvial.engine.events import PushResult
from fluvial.engine.feeding import Feeding
from fluvial.engine.inbox import Inbox, Overflow
from fluvial.engine.live_answer import LiveAnswer, Sink
from fluvial.engine.live_worker import LiveStats, Task, Worker
from fluvial.engine.session import Session
from fluvial.engine.watch import Watch


class LiveSession:
    """A stream of frames, texts and questions into one session; its methods may be called from any thread."""

    def __init__(
        self,
        session: Session,
        *,
        queue: int = 8,
        overflow: Overflow = "drop_oldest",
        economy: Economy | None = None,
    ) -> None:
        """`queue` items wait at most; `overflow` says what becomes of a frame that finds no room: "drop_oldest",
        "drop_newest" or "block". `economy` leaves out frames that show nothing new. Errors: UsageError."""
        self._economy, self._lock = economy, Lock()
        self._feedings: list[Feeding] = []
        self._worker = Worker(session, Inbox(queue, overflow))

    # --- what goes in -------------------------------------------------------------------------------------------

    def push(self, thing: Frame | Gap | str, *, timeout: float | None = None, keep: bool = False) -> PushResult:
        """Puts a frame, a gap or a text into the stream; `accepted` and `dropped` say what became of it and of others.

        What has to wait for room does so for `timeout` seconds at most (None: as long as it takes); with `keep` a frame
        waits too, whatever the rule. Raises UsageError for anything else, UnsupportedError for a model that cannot see,
        and whatever ended the session.
        """
        if isinstance(thing, str) and not thing.strip():
            raise UsageError("The text is empty.")
        if not isinstance(thing, Frame | Gap | str):
            what = f"Cannot push a {type(thing).__name__} into a live session."
            raise UsageError(what, hint="Push a Frame, a Gap or text.")
        picture = isinstance(thing, Frame)
        if picture and self._worker.session.model.tower is None:
            raise UnsupportedError(f"{self._worker.session.model.name} reads text only.", hint="Use a model that sees.")
        if isinstance(thing, Frame) and self._economy is not None:
            with self._lock:
                wanted = self._economy.wants(thing)
            if not wanted:
                self._worker.count(skipped=1)
                return PushResult(0, accepted=False)
        accepted, dropped = self._worker.inbox.put(thing, droppable=picture and not keep, timeout=timeout)
        self._worker.count(dropped=dropped)
        return PushResult(0, int(accepted and picture), accepted=accepted, dropped=dropped)

    def feed(self, source: Iterable[Frame | Gap | str], *, live: bool = False) -> Feeding:
        """Pushes all of a source from a thread of its own, until it ends or the session is closed. A `live` one goes on
        whether or not there is room, so its frames may be dropped; of any other, no frame is lost."""
        feeding = Feeding(source, lambda thing: self.push(thing, keep=not live))
        self._feedings = [*(one for one in self._feedings if one.running), feeding]
        return feeding

    # --- what comes out -----------------------------------------------------------------------------------------

    def ask(self, question: str = "", *, commit: bool = True, sink: Sink | None = None, **options: Any) -> LiveAnswer:
        """A question about all that was pushed before it. With `commit=False` it is answered aside, on a fork, while
        frames keep entering the stream. Options and errors as `Session.ask`; the latter come out of the answer.
        `sink` is called with every event on the engine's thread, instead of iterating."""
        answer, worker = LiveAnswer(commit, sink), self._worker

        def begin() -> None:
            answer.begin(lambda: worker.session.ask(question, commit=commit, **options), worker.counts.t)
            worker.answers.append(answer)
            worker.count(answers=1)

        self._worker.inbox.put(Task(begin, answer.end), droppable=False)
        return answer

    def watch(
        self, question: str, *, every: float | None = None, when: Callable[[Frame], bool] | None = None, **options: Any
    ) -> Watch:
        """A standing question, asked aside whenever `every` seconds of the stream have passed, or `when(frame)` is
        true. Iterating the result gives an `Observation` each; options as `Session.ask`. Where frames wait for room
        ("block") they also wait for its answers; else a time that comes during an answer is missed, and counted.
        Errors: UsageError."""
        watch = Watch(question, every, when, options)
        self._worker.call(lambda session: self._worker.watches.append(watch))
        return watch

    # --- memory -------------------------------------------------------------------------------------------------

    def stats(self) -> LiveStats:
        """The counts so far."""
        state = self._worker.session.snapshot().feed.state
        return replace(
            self._worker.counts,
            waiting=len(self._worker.inbox),
            tokens=state.position[0],
            state_bytes=state.nbytes("recurrent"),
            tape_bytes=state.nbytes("tape"),
        )

    def flush(self) -> LiveStats:
        """Waits until all that was pushed before is in memory and all standing questions about it are answered."""
        self._worker.call(lambda session: self._worker.finish_watches())
        return self.stats()

    def save(self, path: str | Path) -> None:
        """Writes the memory, with all that was pushed before, to a file, atomically."""
        self._worker.call(lambda session: session.save(path))

    def fork(self) -> Session:
        """An ordinary session with the memory of this moment."""
        return self._worker.call(lambda session: session.fork())

    def close(self) -> None:
        """Ends the session at once: what still waits is dropped, open answers and watches end with an error. Safe to
        repeat."""
        for feeding in self._feedings:
            feeding.stop()
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
