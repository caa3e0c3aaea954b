"""Cameras and network streams: frames with the time since the start, gaps where pictures stayed away, reconnection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import numpy as np

from fluvial.adapters.errors import MediaError
from fluvial.encoders.frame import MAX_PIXELS, Frame, Gap
from fluvial.encoders.video_opencv import import_cv2, silent

TIMEOUT = 5.0  # seconds to open a stream, or for its next picture (OpenCV's own are 30)
GAP = 2.0  # seconds without a picture that the model is told about
FAILED = 5  # pictures in a row that could not be read: the source is gone
BACK_OFF = (0.25, 8.0)  # seconds between two attempts to reconnect, doubling


class Camera:
    """A camera by its index, or a stream by its address. Iterating gives `Frame`s as they come, `t` in seconds since
    the first attempt, and a `Gap` after pictures stayed away: unplugged, disconnected, or the machine slept."""

    live = True

    def __init__(
        self,
        where: int | str,
        *,
        fps: float | None = None,
        patience: float = 60.0,
        connect: Callable[[int | str], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`fps` pictures a second are given out at most. After `patience` seconds without any, it gives up.
        `connect` opens what reads like a `cv2.VideoCapture`, or None."""
        self.where, self.fps, self.patience = where, fps, patience
        self.frames = self.broken = self.gaps = 0
        self._connect, self._clock = connect or _capture, clock
        self._stopped = Event()

    def close(self) -> None:
        """Ends the iteration within one picture or timeout; may be called from any thread."""
        self._stopped.set()

    def __iter__(self) -> Iterator[Frame | Gap]:
        """Raises MediaError if it is not there at first, or stays away for too long."""
        start = last = self._clock()
        due, wait, capture = 0.0, BACK_OFF[0], self._connect(self.where)
        if capture is None:
            raise MediaError(f"Cannot open {self.name}.", "It is not there or in use.", "Check it, then try again.")
        try:
            while not self._stopped.is_set():
                rgb = None if capture is None else self._read(capture)
                now = self._clock()
                if rgb is None:
                    if capture is not None:
                        capture.release()
                    if now - last > self.patience:
                        raise MediaError(f"{self.name} is gone.", f"No picture came for {now - last:.0f} s.")
                    self._stopped.wait(wait)
                    wait, capture = min(2 * wait, BACK_OFF[1]), self._connect(self.where)
                    continue
                wait = BACK_OFF[0]
                if self.frames and now - last > GAP:
                    self.gaps += 1
                    yield Gap(now - start, now - last, f"{self.name} gave no picture.")
                last = now
                if self.fps is not None:
                    late = now - start - due
                    if late < 0:
                        continue
                    due = (due if late * self.fps < 1 else now - start) + 1 / self.fps
                yield Frame(rgb, now - start, self.frames)
                self.frames += 1
        finally:
            if capture is not None:
                capture.release()

    @property
    def name(self) -> str:
        return f"camera {self.where}" if isinstance(self.where, int) else "the stream"

    def _read(self, capture: Any) -> Any:
        """The next whole picture as RGB uint8 [H, W, 3]; None when the source is gone."""
        for _ in range(FAILED):
            if self._stopped.is_set():
                return None
            ok, bgr = capture.read()
            if ok and bgr is not None and bgr.ndim == 3 and bgr.shape[2] == 3 and 0 < bgr.size <= 3 * MAX_PIXELS:
                return np.ascontiguousarray(bgr[..., ::-1])
            self.broken += 1
        return None


def _capture(where: int | str) -> Any:
    cv2, milliseconds = import_cv2(), int(1000 * TIMEOUT)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, milliseconds, cv2.CAP_PROP_READ_TIMEOUT_MSEC, milliseconds]
    with silent(cv2):
        capture = cv2.VideoCapture(where) if isinstance(where, int) else cv2.VideoCapture(where, cv2.CAP_FFMPEG, limits)
    if capture.isOpened():
        return capture
    capture.release()
    return None
