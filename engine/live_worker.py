"""The thread of a live session that owns the tensors: it feeds, answers, and asks standing questions in between."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from threading import Lock, Thread, current_thread
from typing import Any, TypeVar

from fluvial.adapters.errors import FluvialError, UsageError
from fluvial.encoders.frame import Frame, Gap
from fluvial.engine.inbox import Inbox
from fluvial.engine.live_answer import LiveAnswer
from fluvial.engine.session import Session
from fluvial.engine.watch import Watch

Result = TypeVar("Result")


@dataclass(frozen=True)
class LiveStats:
    """Counts since the session began. `frames` are in memory, `skipped` looked like the one before, `dropped` found no
    room; `t` is the stream time in seconds; `waiting` items stand in the queue; bytes are what the memory holds."""

    frames: int = 0
    skipped: int = 0
    dropped: int = 0
    texts: int = 0
    gaps: int = 0
    answers: int = 0
    missed: int = 0
    t: float | None = None
    waiting: int = 0
    tokens: int = 0
    state_bytes: int = 0
    tape_bytes: int = 0


@dataclass(frozen=True)
class Task:
    """Something to do on the engine's thread; `refuse` tells whoever waits for it that it will not be done."""

    run: Callable[[], None]
    refuse: Callable[[BaseException], None]


class Worker:
    """Takes things from the inbox in order. An answer to be committed is part of the stream, which waits for it; the
    others are made on forks, a token each between two things of the stream."""

    def __init__(self, session: Session, inbox: Inbox) -> None:
        self.session, self.inbox, self.counts = session, inbox, LiveStats()
        self.answers: list[LiveAnswer] = []  # the thread alone touches these two
        self.watches: list[Watch] = []
        self._lock = Lock()
        self._thread = Thread(target=self._run, name="fluvial-live", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        error: FluvialError = _closed()
        try:
            while not self.inbox.closed:
                if not any(answer.commit for answer in self.answers):
                    self._take(self.inbox.take(0.0 if self.answers else None))
                self.answers = [answer for answer in self.answers if answer.step()]
        except FluvialError as caught:
            error = caught
        except BaseException as caught:
            why = f"{type(caught).__name__}: {caught}"[:300]
            error = FluvialError("The engine stopped.", why, "Open a new session.")
        finally:
            self._refuse(error)
            for answer in self.answers:
                answer.end(error)
            for watch in self.watches:
                watch.end(error)

    def _take(self, thing: Frame | Gap | str | Task | None) -> None:
        if isinstance(thing, Task):
            thing.run()
        elif isinstance(thing, Frame):
            self.session.push(thing)
            self.count(frames=1, t=thing.t)
            for watch in self.watches:
                if watch.due(thing):
                    self._observe(watch, thing.t)
            self.watches = [watch for watch in self.watches if not watch.closed]
        elif thing is not None:
            self.session.stream(thing if isinstance(thing, str) else thing.text)
            self.count(texts=1) if isinstance(thing, str) else self.count(gaps=1)

    def _observe(self, watch: Watch, t: float) -> None:
        if watch.answer in self.answers:  # still busy with the last time
            if self.inbox.overflow != "block":
                self.count(missed=1)
                return
            self.finish_watches()
        options = watch.options
        self.answers.append(watch.begin(t, lambda: self.session.ask(watch.question, commit=False, **options)))
        self.count(answers=1)

    def finish_watches(self) -> None:
        busy = [watch.answer for watch in self.watches if watch.answer in self.answers]
        for answer in busy:
            while not self.inbox.closed and answer is not None and answer.step():
                pass
        self.answers = [answer for answer in self.answers if answer not in busy]

    def count(self, t: float | None = None, **more: int) -> None:
        with self._lock:
            counts: dict[str, Any] = {name: getattr(self.counts, name) + n for name, n in more.items()}
            self.counts = replace(self.counts, **counts, t=self.counts.t if t is None else t)

    def call(self, function: Callable[[Session], Result]) -> Result:
        """Runs `function` on the engine's thread, after all that was pushed before, and gives what it returns."""
        if self._thread is current_thread():
            raise UsageError("This waits for the engine's thread, which it was called on.", hint="Call it elsewhere.")
        done: Future[Result] = Future()

        def run() -> None:
            try:
                done.set_result(function(self.session))
            except FluvialError as error:
                done.set_exception(error)
            except BaseException as error:
                done.set_exception(error)
                raise

        self.inbox.put(Task(run, done.set_exception), droppable=False)
        return done.result()

    def close(self) -> None:
        """Ends the thread within a token or a step of embeddings, and waits for that."""
        self._refuse(_closed())
        if self._thread is not current_thread():
            self._thread.join()

    def _refuse(self, error: FluvialError) -> None:
        """Nothing goes in any more, and whoever waits for a turn gets the error."""
        for item in self.inbox.close(error):
            if isinstance(item, Task):
                item.refuse(error)


def _closed() -> UsageError:
    return UsageError("The session is closed.", hint="Open a new one.")
