"""Printed digits and capitals as masks, in fonts that are there on every machine.

Three sources: Pillow's own font, OpenCV's Hershey faces (true strokes in OpenCV 4, a bold outline font in 5), and the
stroke font of this file. Each character is drawn once per process and kept; a line is glued, scaled, then turned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

HEIGHT = 64  # rows of a glyph: capitals fill rows TOP to BASE
TOP, BASE = 8, 52
STROKES_FONT = -1
# (source, stroke): None = Pillow with an extra stroke, STROKES_FONT = the strokes below, else a Hershey face
FONTS = (
    *((None, stroke) for stroke in (0, 1, 2, 3)),
    *((STROKES_FONT, stroke) for stroke in (4, 6, 8, 10)),
    (cv2.FONT_HERSHEY_SIMPLEX, 5),
    (cv2.FONT_HERSHEY_DUPLEX, 6),
)
# polylines on a grid 4 wide and 6 high, y down: two digits a point, a blank between lines
STROKES = {
    "0": "103041453616050110", "1": "022026", "2": "01103041420646", "3": "0110304142334445361605 1333",
    "4": "36300444", "5": "400002324345361605", "6": "4130100105163645443303", "7": "004016",
    "8": "103041423344453616050413020110 1333", "9": "0516364541301001021343", "A": "062046 1434",
    "B": "00063645443303 3342413000", "C": "4130100105163645", "D": "00062645412000", "E": "40000646 0333",
    "F": "400006 0333", "G": "41301001051636454323", "H": "0006 4046 0343", "I": "2026", "J": "404536160504",
    "K": "0006 4003 1346", "L": "000646", "M": "0600234046", "N": "06004640", "O": "103041453616050110",
    "P": "06003041423303", "Q": "103041453616050110 2446", "R": "06003041423303 2346",
    "S": "413010010213334445361605", "T": "0040 2026", "U": "000516364540", "V": "002640", "W": "0016233640",
    "X": "0046 4006", "Y": "002340 2326", "Z": "00400646",
}  # fmt: skip


@dataclass
class Line:
    """A printed line: x, y its middle and height that of a capital, in 0..1 of the picture; angle in radians."""

    text: str
    font: int
    spacing: int  # between characters, BASE - TOP being the height
    stretch: float  # of the width
    slant: float  # as in italics: sideways shift per height
    height: float
    x: float = 0.5
    y: float = 0.5
    angle: float = 0.0

    @property
    def aspect(self) -> float:
        """Width of the line over the height of a capital."""
        ink = sum(glyph(c, self.font).shape[1] for c in self.text) + self.spacing * (len(self.text) - 1)
        return self.stretch * ink / (BASE - TOP) + abs(self.slant)

    def draw(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """The mask float32 [size, size] in 0..1 and the characters' centres float [len(text), 2] in 0..1."""
        parts, centres, at = [], [], 0
        for c in self.text:
            g = glyph(c, self.font)
            centres.append(at + g.shape[1] / 2)
            parts += [g, np.zeros((HEIGHT, self.spacing), np.uint8)]
            at += g.shape[1] + self.spacing
        line = np.concatenate(parts[:-1], 1)
        scale = self.height * size / (BASE - TOP)
        width, rows = max(1, round(line.shape[1] * scale * self.stretch)), max(1, round(HEIGHT * scale))
        small = cv2.resize(line, (width, rows), interpolation=cv2.INTER_AREA)
        middle = np.array([width / 2, (TOP + BASE) / 2 * rows / HEIGHT])
        c, s = np.cos(self.angle), np.sin(self.angle)
        turn = np.array([[c, -s], [s, c]]) @ np.array([[1, -self.slant], [0, 1]])
        shift = np.array([self.x, self.y]) * size - turn @ middle
        mask = cv2.warpAffine(small, np.column_stack([turn, shift]), (size, size), flags=cv2.INTER_LINEAR)
        points = np.stack([np.array(centres) * width / line.shape[1], np.full(len(self.text), middle[1])])
        return mask.astype(np.float32) / 255, (turn @ points + shift[:, None]).T / size


@lru_cache(maxsize=512)
def glyph(char: str, font: int) -> np.ndarray:
    """uint8 [HEIGHT, w], 255 = ink, cut to the ink from left to right."""
    source, stroke = FONTS[font]
    canvas = np.zeros((128, 128), np.uint8)
    if source is None:
        picture = Image.new("L", (128, 128))
        face = ImageFont.load_default(size=60)
        ImageDraw.Draw(picture).text((20, 104), char, fill=255, font=face, anchor="ls", stroke_width=stroke)
        canvas = np.array(picture)
    elif source == STROKES_FONT:
        for part in STROKES[char].split():
            points = np.array([(int(part[i]), int(part[i + 1])) for i in range(0, len(part), 2)])
            cv2.polylines(canvas, [np.array((20, 60)) + points * (7, 7)], False, 255, stroke, cv2.LINE_AA)
    else:
        cv2.putText(canvas, char, (20, 104), source, 2.0, 255, stroke, cv2.LINE_AA)
    left, top, width, height = cv2.boundingRect(canvas)
    tail = max(top + height - 108, 0) if char in "QJ" else 0  # a tail may hang below the line
    bottom = top + height - tail
    wide = max(1, round(width * (BASE - TOP) / (height - tail)))
    out = np.zeros((HEIGHT, wide), np.uint8)
    out[TOP:BASE] = cv2.resize(canvas[top:bottom, left : left + width], (wide, BASE - TOP))
    if tail:
        hanging = cv2.resize(canvas[bottom : bottom + tail, left : left + width], (wide, min(tail, HEIGHT - BASE)))
        out[BASE : BASE + len(hanging)] = hanging
    return out
