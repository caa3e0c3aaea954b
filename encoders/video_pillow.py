"""Animations (GIF, WebP, PNG, AVIF) as videos, through Pillow, with the durations their frames carry.

OpenCV reads none or few of them. A still image is a video of one frame.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from fluvial.adapters.errors import FluvialError
from fluvial.encoders.frame import MAX_PIXELS, RGB, Convert, fit
from fluvial.encoders.image import open_header, open_image, upright
from fluvial.encoders.pixels import rgb_of_image
from fluvial.encoders.source import name_of
from fluvial.encoders.video_backend import Facts, Picture

_ANIMATED = frozenset({"gif", "webp", "png", "avif"})
# Browsers show a frame that asks for 10 ms or less for 100 ms; old GIFs are made for that.
_SHORTEST, _USUAL = 0.010, 0.100


class PillowBackend:
    """One pass over an animation; each frame is drawn when it is reached, and only one is held."""

    def __init__(self, place: Path | bytes, kind: str, max_pixels: int | None) -> None:
        self.broken = 0
        self._max_pixels = max_pixels
        # The first frame through the door for images: it gives the same errors.
        with open_image(place, max_pixels=MAX_PIXELS, noun="video") as first:
            width, height = first.size
        self._stream: BinaryIO = io.BytesIO(place) if isinstance(place, bytes) else place.open("rb")
        try:
            self._image = open_header(self._stream, kind, name_of(place), MAX_PIXELS, "video")
            # The picture that an animated PNG shows where animations are not understood is no part of the animation.
            self._first = 1 if self._image.info.get("default_image") and getattr(self._image, "n_frames", 1) > 1 else 0
            frames = 1
            if kind in _ANIMATED:  # counting the frames of a GIF is to read all of it
                frames = 0 if kind == "gif" else getattr(self._image, "n_frames", 1) - self._first
        except BaseException:
            self.close()
            raise
        self._last = None if frames == 0 else self._first + frames - 1
        width, height = fit(width, height, max_pixels)
        self.facts = Facts(width, height, frames=frames or None, start=0.0)

    def pictures(self) -> Iterator[Picture]:
        at, seconds = self._first, 0.0
        while self._last is None or at <= self._last:
            try:
                self._image.seek(at)
                self._image.load()
            except EOFError:
                return
            except FluvialError:
                raise
            except Exception:  # cut short or damaged: what follows builds on this frame
                self.broken += 1
                return
            lasts = float(self._image.info.get("duration") or 0) / 1000
            if lasts <= _SHORTEST:
                lasts = _USUAL
            yield Picture(seconds, lasts, self._convert, self._hold)
            seconds += lasts
            at += 1

    def _convert(self) -> RGB | None:
        rgb = rgb_of_image(upright(self._image))
        height, width = rgb.shape[:2]
        fitted = fit(width, height, self._max_pixels)
        if fitted != (width, height):
            rgb = rgb_of_image(Image.fromarray(rgb).resize(fitted, Image.Resampling.BOX))
        return rgb

    def _hold(self) -> Convert | None:
        rgb = self._convert()
        return lambda: rgb

    def extent(self) -> None:
        return None

    def close(self) -> None:
        self._stream.close()
