"""`AsyncSession`: a live session for asyncio. Nothing here blocks the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Self

from fluvial.encoders.frame import Frame, Gap
from fluvial.engine.events import Event, PushResult
from fluvial.engine.feeding import Feeding
from fluvial.engine.live import LiveSession
from fluvial.engine.live_worker import LiveStats
from fluvial.engine.session import Session
from fluvial.engine.watch import Observation


class AsyncSession:
    """As `LiveSession`, with methods to await and async iterators; arguments and errors are the same."""

    def __init__(self, session: Session, **options: Any) -> None:
        self.live = LiveSession(session, **options)

    async def push(self, thing: Frame | Gap | str, *, timeout: float | None = None) -> PushResult:
        return await asyncio.to_thread(self.live.push, thing, timeout=timeout)

    def feed(self, source: Iterable[Frame | Gap | str], *, live: bool = False) -> Feeding:
        return self.live.feed(source, live=live)

    async def ask(self, question: str = "", *, commit: bool = True, **options: Any) -> AsyncIterator[Event]:
        """The events of an answer; leaving the loop early cancels it."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Event | BaseException | None]()

        def sink(event: Event | BaseException | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        answer = await asyncio.to_thread(self.live.ask, question, commit=commit, sink=sink, **options)
        try:
            while (event := await events.get()) is not None:
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            answer.close()

    async def watch(self, question: str, **options: Any) -> AsyncIterator[Observation]:
        """A standing question's observations; leaving the loop ends it."""
        watch = await asyncio.to_thread(self.live.watch, question, **options)
        try:
            while (seen := await asyncio.to_thread(next, watch, None)) is not None:
                yield seen
        finally:
            watch.close()

    def stats(self) -> LiveStats:
        return self.live.stats()

    async def flush(self) -> LiveStats:
        return await asyncio.to_thread(self.live.flush)

    async def save(self, path: str | Path) -> None:
        await asyncio.to_thread(self.live.save, path)

    async def close(self) -> None:
        await asyncio.to_thread(self.live.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
