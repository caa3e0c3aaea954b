"""Which frames of a video file Qwen's towers look at, as its video processors choose them.

`fps` frames a second, at least `least` and at most `most`, evenly from the first frame to the last, both included. The
choice is by number in the published code; here a frame is found by the time on the screen in its middle, which is the
same frame at a constant rate, and the right moment at a variable one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fluvial.encoders.layout import Viewing
from fluvial.encoders.video_reader import VideoReader

USUAL_RATE = 24.0  # frames a second, for a file that says nothing of its own


@dataclass(frozen=True)
class Watching:
    """`fps` frames a second (None: every frame) within `least` and `most`, or `count` frames."""

    fps: float | None = 2.0
    count: int | None = None
    least: int = 4
    most: int = 768

    @classmethod
    def read(cls, processor: dict[str, Any]) -> Watching:
        """From a parsed processor_config.json. Errors: ValueError for numbers that make no sense."""
        video = processor.get("video_processor") or {}
        fps, count = video.get("fps", cls.fps), video.get("num_frames")
        least, most = video.get("min_frames") or cls.least, video.get("max_frames") or cls.most
        for name, value in {"fps": fps, "num_frames": count, "min_frames": least, "max_frames": most}.items():
            kinds = (int, float) if name == "fps" else (int,)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 1e6):
                raise ValueError(f"the video processor's {name} is {value!r:.40}")
        return cls(fps, count, least, most)

    def indices(
        self, total: int, rate: float, *, fps: float | None = None, count: int | None = None, most: int | None = None
    ) -> list[int]:
        """Which of `total` frames at `rate` a second; `fps`, `count` and `most` frames are the caller's wishes."""
        ceiling = min(self.most, most or self.most)
        count = count or (None if fps else self.count)
        if count is None:
            fps = fps or self.fps
            wanted = total if fps is None else int(total / rate * fps)
            count = min(max(wanted, self.least), ceiling)
        chosen: list[int] = np.linspace(0, total - 1, min(count, most or count, total)).round().astype(int).tolist()
        return chosen

    def viewing(self, source: VideoReader, *, fps: float | None, count: int | None, most: int | None) -> Viewing:
        """The moments at which to look at a file; may read through it once, for its length."""
        extent, rate = source.extent(), source.fps or USUAL_RATE
        total = extent.frames or max(1, round(extent.seconds * rate))
        if not math.isclose(total / rate, extent.seconds, abs_tol=1.5 / rate):  # the header's rate is not its frames'
            rate = total / extent.seconds if extent.seconds > 0 else rate
        indices = self.indices(total, rate, fps=fps, count=count, most=most)
        return Viewing(tuple((index + 0.5) * extent.seconds / total for index in indices))
