"""Ctrl-C in a chat: it stops what may be stopped, once, and leaves alone what has to finish."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self


class Interrupts:
    """Inside `with Interrupts() as interrupts`, Ctrl-C raises KeyboardInterrupt within `interrupts.allowed()` only.

    It is raised once: what cleans up afterwards is not torn by an impatient second one.
    """

    def __init__(self) -> None:
        self._allowed = False
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        self._allowed = True
        try:
            yield
        finally:
            self._allowed = False

    def _handle(self, _: int, __: FrameType | None) -> None:
        if self._allowed:
            self._allowed = False
            raise KeyboardInterrupt
