"""What a user pushes besides text: images, videos, single frames; and how they become steps of embeddings.

Frames stream: a video is decoded, sampled and encoded a few steps at a time, and its pictures are never all in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from fluvial.engine.cache.media import Look

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
Step = tuple[Tensor, Layout]


@dataclass(frozen=True)
class Facts:
    """What is known of a medium after its last step: the plain text before and behind it, a digest of what the model
    saw, how many pictures, how many `tokens` of embeddings, and a warning if it is damaged."""

    lead: str
    after: str
    digest: str
    frames: int
    tokens: int
    warning: str


class Encoding:
    """One medium as steps of embeddings [tokens, D], made while they are read, or as the cache has them (`seen`).

    `kind` is "image" or "video"; `live` frames stand for themselves. `frames` and `tokens` count what was given out;
    after the last step, `digest` identifies what the model saw.
    """

    def __init__(
        self, model: Model, medium: Medium | list[Frame], route: Route | None = None, seen: Look | None = None
    ) -> None:
        self.kind = "image" if isinstance(medium, Image) else "video"
        self.live = not isinstance(medium, Image | Video)
        self.frames = self.tokens = 0
        self._hash = hashlib.sha256(self.kind.encode())
        self._report: Report | None = None
        self._viewing: Viewing | None = None
        self._first: Step | None = None
        self._model, self._medium, self._route, self._seen = model, medium, route, seen
        self._facts = seen.facts if seen is not None else None
        self._stream = self._opened() if self._facts is None else iter(())

    def _opened(self) -> Iterator[Step]:
        """The steps; unreadable files fail here, before anything is fed."""
        medium = self._medium
        if isinstance(medium, Image):
            self._image = read_image(medium.source, max_pixels=medium.max_pixels)
        elif isinstance(medium, Video):
            fps, count, most = None if medium.frames else medium.fps, medium.frames, medium.max_frames
            check(fps, most, count)
            self._reader = open_video(medium.source)
            if self._model.tower is not None:
                with contextlib.ExitStack() as undo:
                    undo.callback(self._reader.close)
                    self._viewing = self._model.tower.viewing(self._reader, fps=fps, count=count, most=most)
                    undo.pop_all()
        return self._read()

    @property
    def symbol(self) -> str:
        """What it is called in a chain of what was read."""
        return f"medium {self._seen.key}" if self._seen is not None else ""

    @property
    def digest(self) -> str:
        return self._hash.hexdigest() if self._facts is None else self._facts.digest

    @property
    def warning(self) -> str:
        """What is to say of a damaged video."""
        if self._facts is not None:
            return self._facts.warning
        damaged = self._report is not None and (self._report.truncated or self._report.broken)
        return self._report.message() if self._report is not None and damaged else ""

    @property
    def part(self) -> dict[str, str]:
        """Its place in a message. A template without videos gets an image: the frames as pictures in a row."""
        media = self._model.template.media if self._model.template is not None else {}
        return {"type": self.kind if self.kind in media or "image" not in media else "image"}

    @property
    def lead(self) -> str:
        """Plain text before the first step, to be encoded as one with what comes before; encodes the first steps."""
        if self._facts is not None:
            return self._facts.lead
        if self._first is None:
            self._first = next(self._stream, None)
        return (self._viewing.before if self._viewing else "") + (self._first[1].lead if self._first else "")

    @property
    def after(self) -> str:
        """Plain text behind the last step, to be encoded as one with what follows."""
        if self._facts is not None:
            return self._facts.after
        return self._viewing.after if self._viewing else ""

    def skip(self) -> None:
        """The medium was read before, and a state behind it is at hand."""
        assert self._facts is not None
        self.frames, self.tokens = self._facts.frames, self._facts.tokens

    def steps(self) -> Iterator[Step]:
        """Embeddings [tokens, D] and how they enter the stream behind `lead`, one pair per image or video step."""
        seen, facts = self._seen, self._facts
        if seen is not None and facts is not None and seen.steps is not None:
            self.skip()
            yield from seen.steps
            return
        if facts is not None:
            self._facts, self._stream = None, self._opened()
        lead = self.lead
        first = [] if self._first is None else [(self._first[0], replace(self._first[1], lead=""))]
        try:
            for x, layout in chain(first, self._stream):
                self.tokens += len(x)
                if seen is not None:
                    seen.add((x, layout))
                yield x, layout
            if seen is not None:
                seen.finish(Facts(lead, self.after, self.digest, self.frames, self.tokens, self.warning))
        finally:
            if seen is not None:
                seen.drop()

    def _read(self) -> Iterator[Step]:
        if isinstance(self._medium, Image):
            yield from self._encoded([self._image])
        elif isinstance(self._medium, Video):
            with self._reader as reader:
                yield from self._batches(self._sampled(self._medium))
                self._report = reader.report
        else:
            frames = self._medium if isinstance(self._medium, list) else [self._medium]
            yield from self._batches(frames)

    def _sampled(self, video: Video) -> Iterator[Frame]:
        if self._viewing is not None:
            return at_times(self._reader, self._viewing.times)
        fps = None if video.frames else video.fps or self._model.processor.fps
        return sample(self._reader, fps=fps, count=video.frames, max_frames=video.max_frames)

    def _batches(self, frames: Iterable[Frame]) -> Iterator[Step]:
        stream, per_step = iter(frames), self._model.tower.frames_per_step if self._model.tower else 1
        while batch := list(islice(stream, STEPS_AT_ONCE * per_step)):
            for _, alike in groupby(batch, key=lambda frame: frame.rgb.shape):  # a stream may change its size
                yield from self._encoded(list(alike))

    def _encoded(self, frames: list[Frame]) -> Iterator[Step]:
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
