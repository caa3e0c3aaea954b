"""Videos through OpenCV: sequential `grab()` and the timestamp after it, nothing else.

`set(CAP_PROP_POS_*)` lands on wrong frames in most files with variable frame rate, so it is never used. Measured with
OpenCV 5: `grab()` returns False at a broken packet as well as at the end, and goes on if asked again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.adapters.errors import MediaError
from fluvial.encoders.containers import Layout
from fluvial.encoders.frame import MAX_PIXELS, RGB, Convert, fit
from fluvial.encoders.image import check_size
from fluvial.encoders.video_backend import Facts, Picture, sane

# So many failed grabs in a row are taken for the end of the file; at the true end they cost about 0.05 ms each.
_FAILURES_AT_END = 256


def import_cv2() -> Any:
    """The cv2 module; MediaError with what to install where its system libraries are missing."""
    try:
        import cv2
    except ImportError as error:
        raise MediaError(
            "OpenCV cannot be loaded.",
            f"{error}.",
            "On Debian or Ubuntu: apt-get install libgl1 libglib2.0-0. Or: pip install 'fluvial[video]'.",
        ) from error
    return cv2


@contextlib.contextmanager
def silent(cv2: Any) -> Iterator[None]:
    """Inside, OpenCV and FFmpeg write no lines of their own beside our error; a level that the user chose is kept."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    log_level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(log_level)


class OpenCVBackend:
    """One pass over a video file with `cv2.VideoCapture`; rotation is applied by OpenCV."""

    def __init__(self, path: Path, name: str, kind: str, layout: Layout, max_pixels: int | None) -> None:
        self._cv2 = cv2 = import_cv2()
        self.broken = 0
        self._max_pixels = max_pixels
        with silent(cv2):
            # The backend is named: another one would read `photo_01.jpg` as the first of a sequence of images.
            self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise MediaError(f"Cannot read the video {name}.", "OpenCV found no picture that it can decode.")
        width, height = (int(self._get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        check_size(width, height, MAX_PIXELS, "video", name)
        self.facts = self._read_facts(kind, layout, *fit(width, height, max_pixels))

    def _get(self, prop: int) -> float:
        return float(self._capture.get(prop))

    def _read_facts(self, kind: str, layout: Layout, width: int, height: int) -> Facts:
        fps = sane(self._get(self._cv2.CAP_PROP_FPS))
        count = sane(self._get(self._cv2.CAP_PROP_FRAME_COUNT), most=1e12)
        # Where the container holds no count, OpenCV makes one of duration x fps: the quotient is the duration again.
        duration = count / fps if count and fps else None
        if duration is not None and layout.seconds is not None:
            duration = min(duration, layout.seconds)  # a trimmed MP4 stores more than it shows
        mp4 = kind == "mp4" and not layout.fragmented
        return Facts(
            width=width or None,
            height=height or None,
            fps=sane(fps, most=960),
            duration=duration,
            exact=duration is not None and (mp4 or kind == "avi"),
            frames=int(count) if mp4 and count else None,
            start=0.0,
        )

    def pictures(self) -> Iterator[Picture]:
        first, failures = True, 0
        while failures < _FAILURES_AT_END:
            if not self._capture.grab():
                failures += 1
                continue
            self.broken += failures  # they were inside the file, not at its end
            failures = 0
            seconds = self._get(self._cv2.CAP_PROP_POS_MSEC) / 1000
            # 0 stands for 'no timestamp' as well as for the start.
            yield Picture(seconds if first or seconds > 0 else None, None, self._convert, self._hold)
            first = False

    def _convert(self) -> RGB | None:
        later = self._hold()
        return None if later is None else later()

    def _hold(self) -> Convert | None:
        ok, bgr = self._capture.retrieve()
        return (lambda: self._to_rgb(bgr)) if ok and bgr is not None and bgr.ndim == 3 else None

    def _to_rgb(self, bgr: RGB) -> RGB:
        cv2 = self._cv2
        height, width = bgr.shape[:2]
        fitted = fit(width, height, self._max_pixels)
        if fitted != (width, height):
            bgr = cv2.resize(bgr, fitted, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))

    def extent(self) -> None:
        return None

    def close(self) -> None:
        self._capture.release()
