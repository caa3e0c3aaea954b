"""Frames for the video tasks: plain shapes and printed digits on a quiet ground."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fluvial.encoders.frame import Frame

SIZE, FPS = 128, 2.0
COLOURS = {"red": (220, 30, 30), "blue": (40, 90, 220), "yellow": (245, 220, 40), "green": (40, 180, 60)}
SHAPES = ("circle", "square", "triangle")


class Ground:
    """The background of one stream: a slope between two greys, with a little noise in every frame."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        low, high = np.sort(rng.uniform(90, 170, 2))
        self._base = np.linspace(low, high, SIZE, dtype=np.float32)[:, None, None] * np.ones((1, SIZE, 3), np.float32)

    def frame(self, index: int, shape: tuple[str, str] | None = None, code: str = "") -> Frame:
        """The frame with this index: empty, with a (colour, shape) in the middle, or with a printed code."""
        noise = self._rng.normal(0, 2, (SIZE, SIZE, 1)).astype(np.float32)
        picture = Image.fromarray((self._base + noise).clip(0, 255).astype(np.uint8))
        pen = ImageDraw.Draw(picture)
        low, high = SIZE * 0.3, SIZE * 0.7
        if shape is not None:
            fill = COLOURS[shape[0]]
            if shape[1] == "circle":
                pen.ellipse((low, low, high, high), fill)
            elif shape[1] == "square":
                pen.rectangle((low, low, high, high), fill)
            else:
                pen.polygon([(SIZE / 2, low), (low, high), (high, high)], fill)
        if code:
            pen.text((SIZE / 2, SIZE / 2), code, (0, 0, 0), ImageFont.load_default(56), anchor="mm", stroke_width=1)
        return Frame(np.array(picture), index / FPS, index)
