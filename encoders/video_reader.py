"""One video as a stream of frames: the same clock, lock and report whatever decodes it.

Frames are handed out one by one: an hour of video is never in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from fluvial.adapters.errors import MediaError, UsageError
from fluvial.encoders.containers import Layout
from fluvial.encoders.frame import Convert, Extent, FrameSource, Pending
from fluvial.encoders.report import Report
from fluvial.encoders.video_backend import Backend, Clock, Facts

T = TypeVar("T")


class VideoReader(FrameSource):
    """Iterates the `Frame`s of one video in time order; each new iteration starts again from the first frame.

    `width`, `height` (as shown), `fps` (average) and `duration` (seconds) are what the header says, None where unknown;
    `frames` is given only where the header can be trusted. `report` speaks of the latest iteration and is
    complete when that ended. Use it in a `with` block, or call `close()`; one frame at most is waited for.

    Raises while iterating:
        MediaError: not one frame could be decoded.
        UsageError: the reader is closed.
    """

    def __init__(self, start: Callable[[], Backend], name: str, layout: Layout, backend: str) -> None:
        self._start, self._name, self._layout, self.backend = start, name, layout, backend
        self._lock = threading.RLock()  # between a step of the decoder and close() on another thread
        self._closed = False
        self._waiting: Backend | None = start()
        self._open: set[Backend] = {self._waiting}
        self.facts: Facts = self._waiting.facts
        self.on_close: Callable[[], None] = lambda: None  # what to remove afterwards
        self.report = self._new_report()

    @property
    def width(self) -> int | None:
        return self.facts.width

    @property
    def height(self) -> int | None:
        return self.facts.height

    @property
    def fps(self) -> float | None:
        return self.facts.fps

    @property
    def duration(self) -> float | None:
        return self.facts.duration

    @property
    def frames(self) -> int | None:
        return self.facts.frames if self._layout.whole is not False else None

    def extent(self) -> Extent:
        facts = self.facts
        if facts.exact and facts.duration is not None and self._layout.whole is not False:
            return Extent(facts.duration, facts.frames)
        backend = self._take()
        try:
            with self._lock:
                if (extent := backend.extent()) is not None:
                    return extent
        finally:
            self._release(backend)
        for _ in self.pending():  # decodes, but converts nothing
            pass
        return Extent(self.report.seconds, self.report.decoded)

    def pending(self) -> Iterator[Pending]:
        backend = self._take()
        clock = Clock(self.facts.fps, self.facts.start)
        report = self.report = self._new_report()
        failed = 0  # decoded packets whose picture could not be converted

        def guarded(call: Callable[[], T | None]) -> Callable[[], T | None]:
            def guard() -> T | None:
                nonlocal failed
                with self._lock:
                    self._check_open()
                    result = call()
                if result is None:
                    failed += 1
                    report.decoded -= 1
                    report.broken = backend.broken + failed
                return result

            return guard

        def holder(hold: Callable[[], Convert | None]) -> Callable[[], Convert | None]:
            def held() -> Convert | None:
                later = guarded(hold)()
                return None if later is None else guarded(later)

            return held

        try:
            pictures = backend.pictures()
            index = 0
            while True:
                with self._lock:
                    self._check_open()
                    picture = next(pictures, None)
                    report.broken = backend.broken + failed
                if picture is None:
                    break
                t = clock.stamp(picture.seconds)
                report.decoded += 1
                report.seconds = max(report.seconds, t + (picture.lasts or clock.step))
                yield Pending(t, index, picture.lasts, guarded(picture.rgb), picture.hold and holder(picture.hold))
                index += 1
            report.finish(clock.step)
            if report.decoded == 0:
                raise no_frames(self._name, self._layout)
        finally:
            self._release(backend)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for backend in tuple(self._open):
                self._release(backend)
            self.on_close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> Backend:
        with self._lock:
            self._check_open()
            backend, self._waiting = self._waiting or self._start(), None
            self._open.add(backend)
            return backend

    def _release(self, backend: Backend) -> None:
        with self._lock:
            if backend in self._open:
                self._open.discard(backend)
                backend.close()

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError(f"The video {self._name} is closed.", "", "Read it inside its `with` block.")

    def _new_report(self) -> Report:
        facts, layout = self.facts, self._layout
        return Report(self._name, facts.frames, facts.duration, layout.whole, truncated=layout.whole is False)


def no_frames(name: str, layout: Layout, why: str = "") -> MediaError:
    """The error for a video without one frame, with the likely reason."""
    hint = "Try to play it in another program, or convert it to MP4 (H.264)."
    if not layout.index:
        why = "Its index (the moov box) is missing: the recording or the download never finished."
        hint = "Download it again; a cut recording needs a repair tool."
    elif layout.whole is False:
        by = f" by {layout.missing:,} bytes" if layout.missing else ""
        why, hint = f"The file is truncated: it is cut short{by}, before the first whole frame.", "Download it again."
    return MediaError(f"Cannot read the video {name}.", why or "Not one frame of it could be decoded.", hint)
