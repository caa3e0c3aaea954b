"""Numbers and words printed in a picture: what they say, and where and how they stand."""

from __future__ import annotations

import numpy as np

from .glyphs import FONTS, Line
from .render import Look
from .scene import Object

PRINTED = ("number", "word")
_WORDS = """
SUN CAT DOG MAP KEY BOX HAT CUP RED BUS CAR PEN TEA ICE JAM ZOO FLY EGG OWL VAN MOON STAR FISH BIRD TREE LAKE
FIRE WIND SNOW RAIN SHIP DOOR BOOK GATE GOLD JUMP KING QUIZ EXIT OPEN STOP HELP FROG WOLF RIVER STONE LIGHT
WATER BREAD HOUSE TRAIN PLANT CLOUD SUGAR PIANO ZEBRA QUEEN VIDEO YOUNG JUICE
"""
WORDS = tuple(_WORDS.split())


def sample_print(rng: np.random.Generator, level: float, kind: str) -> tuple[Line, list[Object]]:
    """A number of 1-4 digits or a word of 3-5 capitals (half of them random letters), placed."""
    if kind == "number":
        digits = int(rng.integers(1, 3 + round(2 * level)))
        text = str(rng.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits))
    elif rng.random() < 0.5:
        text = WORDS[rng.integers(len(WORDS))]
    else:
        text = "".join(chr(65 + i) for i in rng.integers(0, 26, rng.integers(3, 6)))
    return place_line(rng, level, text)


def place_line(rng: np.random.Generator, level: float, text: str, low: float = 0.15) -> tuple[Line, list[Object]]:
    """A random line wholly inside the picture, and circles that cover it, for the placement of shapes."""
    line = Line(
        text,
        font=int(rng.integers(len(FONTS))),
        spacing=int(rng.integers(7, 15)),
        stretch=1 + level * rng.uniform(-0.2, 0.2),
        slant=level * rng.uniform(-0.1, 0.25) if rng.random() < 0.4 else 0.0,
        height=0.0,
        angle=rng.uniform(-0.2, 0.2) * level,
    )
    high = min(0.4, 0.86 / line.aspect)
    line.height = rng.uniform(max(min(low, high), high * (0.7 - 0.7 * level)), high)
    c, s = np.cos(line.angle), abs(np.sin(line.angle))
    half_w = line.height * (line.aspect * c + s) / 2 + 0.02
    half_h = line.height * (line.aspect * s + 1.25) / 2 + 0.02
    line.x = rng.uniform(min(half_w, 0.5), max(1 - half_w, 0.5))
    line.y = rng.uniform(min(half_h, 0.5), max(1 - half_h, 0.5))
    along = np.arange(-half_w, half_w + 1e-6, half_w / 4)
    turn = np.sin(line.angle)
    return line, [Object("", "", line.x + a * c, line.y + a * turn, line.height * 0.75) for a in along]


def print_on(canvas: np.ndarray, mask: np.ndarray, look: Look) -> None:
    """Paint the mask of a drawn line into a float32 [S, S, 3] canvas."""
    canvas += (look.rgb - canvas) * mask[..., None]


def glyph_objects(line: Line, colour: str, centres: np.ndarray) -> list[Object]:
    """One Object per character: shape = the character, r = half its height."""
    return [Object(c, colour, x, y, line.height / 2) for c, (x, y) in zip(line.text, centres.tolist(), strict=True)]
