"""`Feeding`: a thread that reads a source and pushes what comes, until the source ends or somebody stops it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Event, Thread
from typing import Any

from fluvial.adapters.errors import FluvialError


class Feeding:
    """`error` is what ended it early, if anything did; `pushed` counts what the session took or dropped."""

    def __init__(self, source: Iterable[Any], push: Callable[[Any], object]) -> None:
        self.error: BaseException | None = None
        self.pushed = 0
        self._source, self._push, self._stopped = source, push, Event()
        self._thread = Thread(target=self._run, name="fluvial-feeding", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the end of the source; False if that is not in sight yet. Raises what ended it early."""
        self._thread.join(timeout)
        if self.error is not None:
            raise self.error
        return not self.running

    def stop(self) -> None:
        """No more is pushed. A source that can be closed is, which ends a read that blocks."""
        self._stopped.set()
        close = getattr(self._source, "close", None)
        if close is not None and not hasattr(self._source, "gi_frame"):  # a generator that runs cannot be closed
            close()

    def _run(self) -> None:
        try:
            for thing in self._source:
                if self._stopped.is_set():
                    return
                self._push(thing)
                self.pushed += 1
        except FluvialError as error:
            self.error = None if self._stopped.is_set() else error
        except BaseException as error:
            self.error = FluvialError("A source failed.", f"{type(error).__name__}: {error}"[:300])
