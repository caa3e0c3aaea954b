"""SmolVLM2's eyes (`model_type` smolvlm): Idefics3's, and videos: a square per frame, its time in words before it.

A file is watched as published: `fps` frames a second, at most `frames`, evenly from the first frame to the last (a
second off either end where it is long), and a sentence before them says how many there are. Frames are found by the
time on the screen, not by their number: the same frame at a constant rate. The sentence counts the frames that were
asked for; damaged ones are left out. Live frames come one by one, without a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluvial.adapters.lora import Route
from fluvial.encoders import idefics3
from fluvial.encoders.frame import Frame
from fluvial.encoders.idefics3 import AROUND, WHOLE, Idefics3Vision, Idefics3VisionConfig
from fluvial.encoders.idefics3_tiles import LONGEST, Tiling
from fluvial.encoders.layout import Layout, Viewing
from fluvial.encoders.number_words import in_words
from fluvial.encoders.video_reader import VideoReader

plan = idefics3.plan
SKIPPED = 1.0  # seconds off either end of a long video
_NOISE = 1e-6  # timestamps and rates are quotients


@dataclass(frozen=True)
class Watching:
    """`fps` frames a second of a video, at most `frames`; each one square."""

    fps: float = 1.0
    frames: int = 64
    tiling: Tiling = field(default_factory=lambda: Tiling(split=False))

    @classmethod
    def read(cls, video: dict[str, Any]) -> Watching:
        """From a video processor's options. Errors: UnsupportedError, ValueError."""
        given = video.get("video_sampling") or {}
        fps = given.get("fps") or video.get("fps") or cls.fps
        frames = given.get("max_frames") or video.get("num_frames") or cls.frames
        if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1 or not 0 < fps <= 1000:
            raise ValueError(f"video_sampling is {given}")
        tiling = Tiling.read({**video, "size": video.get("size") or given.get("video_size")})
        return cls(float(fps), frames, replace(tiling, split=False, longest=min(tiling.longest, LONGEST)))

    def indices(self, total: int, seconds: float, fps: float | None, count: int | None, most: int | None) -> list[int]:
        """Which of a video's `total` frames; `count` frames evenly, or `fps` a second and at most `most`."""
        fps, most = fps or self.fps, most or count or self.frames
        wanted = min(count or max(1, round(fps * seconds)), most)
        begin, end = 0, total - 1
        if seconds - 2 * SKIPPED > most * fps:
            rate = total / seconds
            begin, end = int(SKIPPED * rate + _NOISE), min(int(total - SKIPPED * rate + _NOISE), total - 1)
        if begin >= end:
            begin, end = 0, total - 1
        return np.unique(np.linspace(begin, end, wanted, dtype=int)).tolist()


@dataclass(frozen=True)
class SmolVlmVisionConfig(Idefics3VisionConfig):
    """Idefics3's, and how videos are watched."""

    watching: Watching = field(default_factory=Watching)


class SmolVlmVision(Idefics3Vision):
    """Pixels to decoder embeddings."""

    reads = ("image", "video")
    config: SmolVlmVisionConfig

    @torch.no_grad()
    def encode(
        self, frames: Sequence[Frame], route: Route | None = None, *, video: bool, total: int | None = None
    ) -> Tensor:
        """Frames -> [all their squares, or video frames; tokens; M]. Raises `UsageError` for no frames."""
        if not video:
            return super().encode(frames, route, video=False)
        self._check(frames, video)
        squares = torch.cat([self.config.watching.tiling.squares(frame.rgb) for frame in frames])
        return self(squares.to(self.siglip.table), route)

    def layout(self, frames: Sequence[Frame], *, video: bool, total: int | None = None) -> list[Layout]:
        """The words around each square, or around each frame of a video."""
        if not video:
            return super().layout(frames, video=False)
        self._check(frames, video)
        clocks = [divmod(int(frame.t + _NOISE), 60) for frame in frames]
        leads = [f"\nFrame from {minutes:02d}:{seconds:02d}:" for minutes, seconds in clocks]
        return [Layout(lead=lead, before=(AROUND, WHOLE), after=(AROUND,)) for lead in leads]

    def viewing(self, source: VideoReader, *, fps: float | None, count: int | None, most: int | None) -> Viewing:
        """The frames to look at, and the words before and after them."""
        extent = source.extent()
        total = extent.frames or max(1, round(extent.seconds * (source.fps or 30.0)))
        indices = self.config.watching.indices(total, extent.seconds, fps, count, most)
        times = tuple((index + 0.5) * extent.seconds / total for index in indices)
        length = timedelta(seconds=int(extent.seconds + _NOISE))
        many = in_words(len(times))
        said = f"You are provided the following series of {many} frames from a {length} [H:MM:SS] video.\n"
        return Viewing(times, said, "\n\n")


def from_config(config: dict[str, Any]) -> SmolVlmVision:
    """The tower of a config.json. Errors: UnsupportedError for an option that is not implemented."""
    processor = config.get("processor") or {}
    image = processor.get("image_processor") or processor
    own = Idefics3VisionConfig.read(config)
    watching = Watching.read(processor.get("video_processor") or image)
    return SmolVlmVision(SmolVlmVisionConfig(own.d_model, own.siglip, own.merge, own.tiling, watching))
