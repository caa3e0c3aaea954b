"""A reader that takes the tests by looking for the answers in what it read: by patterns, arithmetic and pixels, without
the generators' words for the truth."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fluvial.encoders.frame import Frame
from fluvial.engine.recall.pictures import COLOURS, SIZE

SLOPE = 40  # how far a pixel lies from grey, or from the ground, to be of a thing


class Oracle:
    """A word is a token; it remembers everything."""

    position = 0

    def __init__(self, model: object = None) -> None:
        self.text, self.frames = "", list[Frame]()

    def read(self, piece: str | Frame) -> int:
        if isinstance(piece, Frame):
            self.frames.append(piece)
            return 1
        self.text += piece
        return len(piece.split())

    def finish(self) -> None: ...

    def nbytes(self, kind: str) -> int:
        return len(self.text)

    def ask(self, question: str, max_tokens: int) -> str:
        return self._seen(question) if self.frames else self._said(question)

    def _said(self, question: str) -> str:
        text = self.text
        if "pass key" in question:
            return " ".join(re.findall(r"pass key is (\d+)", text))
        if "value" in question and "VAR" in text:
            held = set(re.findall(r"\d{5}", question))
            for name, value in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text):
                held |= {name} if value in held else set()
            return ", ".join(held - set(re.findall(r"\d{5}", question)))
        if "value" in question:
            name = question.rstrip("?").split()[-1]
            return " and ".join(re.findall(rf"\b{name}(?: is| =) (\d+)", text))
        if "most frequent" in question:
            return " ".join(word for word, _ in Counter(text.split()[1:]).most_common(3))
        if "ones" in question:
            return "odd" if text.count("1") % 2 else "even"
        if "fruit" in question:
            boxes = re.findall(r"holds the (\w+)", text)
            for i, j in re.findall(r"Swap boxes (\d) and (\d)", text):
                boxes[int(i) - 1], boxes[int(j) - 1] = boxes[int(j) - 1], boxes[int(i) - 1]
            return boxes[int(question.rstrip("?").split()[-1]) - 1]
        return re.findall(r"Remember this line: (.+)\n", text)[0]

    def _seen(self, question: str) -> str:
        if "code" in question:
            return next(code for code in map(_code, self.frames) if code)
        things = [thing for thing in map(_thing, self.frames) if thing]
        if "How many" in question:
            return str(len(dict.fromkeys(things)))
        return things[0].split()[0] if "colour" in question else things[0]


def _thing(frame: Frame) -> str:
    """ "red circle", by the mean colour and by how much of its box it fills; "" for an empty frame."""
    rgb = frame.rgb.astype(int)
    mask = rgb.max(2) - rgb.min(2) > SLOPE
    if not mask.any():
        return ""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    full = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean()
    shape = "square" if full > 0.9 else "circle" if full > 0.65 else "triangle"
    mean = rgb[mask].mean(0)
    return min(COLOURS, key=lambda name: float(np.abs(mean - COLOURS[name]).sum())) + " " + shape


def _code(frame: Frame) -> str:
    """The digits that the dark pixels fit best; "" for a frame without any."""
    dark = frame.rgb.max(2) < SLOPE
    if not dark.any():
        return ""
    return max(_printed(), key=lambda code: (_printed()[code] & dark).sum() / (_printed()[code] | dark).sum())


@cache
def _printed() -> dict[str, np.ndarray]:
    """Every code as bool [SIZE, SIZE]."""
    found = {}
    for number in range(100, 1000):
        picture = Image.new("L", (SIZE, SIZE), 255)
        pen, middle = ImageDraw.Draw(picture), (SIZE / 2, SIZE / 2)
        pen.text(middle, str(number), 0, ImageFont.load_default(56), anchor="mm", stroke_width=1)
        found[str(number)] = np.asarray(picture) < SLOPE
    return found
