"""What a user pushes besides text: images, videos, single frames; and how they become steps of embeddings.

Frames stream: a video is decoded, sampled and encoded a few steps at a time, and its pictures are never all in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from torch import Tensor

from fluvial.adapters.errors import UsageError
from fluvial.adapters.lora import Route
from fluvial.encoders.frame import MAX_PIXELS, Frame
from fluvial.encoders.image import read_image
from fluvial.encoders.layout import Layout, Viewing
from fluvial.encoders.report import Report
from fluvial.encoders.sampling import at_times, check
from fluvial.encoders.video import open_video, sample
from fluvial.engine.model import Model

STEPS_AT_ONCE = 8  # video steps that are encoded together


@dataclass(frozen=True)
class Image:
    """A still image: a path, the bytes of a file, a PIL image or an array uint8 [H, W, 3]."""

    source: Any
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class Video:
    """A video file or animation. `fps` frames a second are looked at (the model's own rate by default), or
    `frames` evenly chosen ones; `max_frames` bounds either."""

    source: str | Path | bytes
    fps: float | None = None
    frames: int | None = None
    max_frames: int | None = None


Medium = Image | Video | Frame


class Encoding:
    """One medium as steps of embeddings [tokens, D], made while they are read.

    `kind` is "image" or "video". After the last step, `digest` identifies what the model saw, `frames` counts the
    pictures and `report` tells how reading a video went.
    """

    def __init__(self, model: Model, medium: Medium | list[Frame], route: Route | None = None) -> None:
        self.kind = "image" if isinstance(medium, Image) else "video"
        self.frames, self._hash = 0, hashlib.sha256(self.kind.encode())
        self.report: Report | None = None
        self._viewing: Viewing | None = None
        self._model, self._medium, self._route = model, medium, route
        if isinstance(medium, Image):  # unreadable files fail here, before anything is fed
            self._image = read_image(medium.source, max_pixels=medium.max_pixels)
        elif isinstance(medium, Video):
            fps, count, most = None if medium.frames else medium.fps, medium.frames, medium.max_frames
            check(fps, most, count)
            self._reader = open_video(medium.source)
            if model.tower is not None:
                with contextlib.ExitStack() as undo:
                    undo.callback(self._reader.close)
                    self._viewing = model.tower.viewing(self._reader, fps=fps, count=count, most=most)
                    undo.pop_all()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    @property
    def part(self) -> dict[str, str]:
        """Its place in a message. A template without videos gets an image: the frames as pictures in a row."""
        media = self._model.template.media if self._model.template is not None else {}
        return {"type": self.kind if self.kind in media or "image" not in media else "image"}

    @property
    def after(self) -> str:
        """Plain text behind the last step, to be encoded as one with what follows."""
        return self._viewing.after if self._viewing else ""

    def steps(self) -> Iterator[tuple[Tensor, Layout]]:
        """Embeddings [tokens, D] and how they enter the stream, one pair per image or video step, in order."""
        lead = self._viewing.before if self._viewing else ""
        for step, layout in self._read():
            yield step, replace(layout, lead=lead + layout.lead)
            lead = ""

    def _read(self) -> Iterator[tuple[Tensor, Layout]]:
        if isinstance(self._medium, Image):
            yield from self._encoded([self._image])
        elif isinstance(self._medium, Video):
            with self._reader as reader:
                yield from self._batches(self._sampled(self._medium))
                self.report = reader.report
        else:
            frames = self._medium if isinstance(self._medium, list) else [self._medium]
            yield from self._batches(frames)

    def _sampled(self, video: Video) -> Iterator[Frame]:
        if self._viewing is not None:
            return at_times(self._reader, self._viewing.times)
        fps = None if video.frames else video.fps or self._model.processor.fps
        return sample(self._reader, fps=fps, count=video.frames, max_frames=video.max_frames)

    def _batches(self, frames: Iterable[Frame]) -> Iterator[tuple[Tensor, Layout]]:
        stream, per_step = iter(frames), self._model.tower.frames_per_step if self._model.tower else 1
        while batch := list(islice(stream, STEPS_AT_ONCE * per_step)):
            for _, alike in groupby(batch, key=lambda frame: frame.rgb.shape):  # a stream may change its size
                yield from self._encoded(list(alike))

    def _encoded(self, frames: list[Frame]) -> Iterator[tuple[Tensor, Layout]]:
        for frame in frames:
            self._hash.update(repr((frame.rgb.shape, round(frame.t, 6))).encode())
            self._hash.update(frame.rgb.tobytes())
        self.frames += len(frames)
        video, total = self.kind == "video", self._total
        steps = self._model.encode(frames, video=video, route=self._route, total=total)
        yield from zip(steps, self._model.tower.layout(frames, video=video, total=total), strict=True)

    @property
    def _total(self) -> int | None:
        """About how many frames the video will have, as far as that is known beforehand."""
        if not isinstance(self._medium, Video):
            return None
        if self._viewing is not None:
            return len(self._viewing.times)
        chosen, seconds = self._medium.frames, self._reader.duration
        if chosen is None and seconds is not None:
            chosen = math.ceil(seconds * (self._medium.fps or self._model.processor.fps))
        most = [n for n in (chosen, self._medium.max_frames) if n is not None]
        return max(1, min(most)) if most else None


def medium_of(thing: object) -> Medium:
    """The medium, or a `UsageError` that says what can be pushed."""
    if isinstance(thing, Image | Video | Frame):
        return thing
    raise UsageError(
        f"Cannot push a {type(thing).__name__}.", hint="Push text, fluvial.Image, fluvial.Video or fluvial.Frame."
    )
