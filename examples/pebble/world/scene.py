"""What a picture, a video or a text of the procedural world contains, and where the shapes stand.

Lengths are fractions of the picture: x to the right, y down, r the radius of the circle around a shape.
Nothing here draws; `render` does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
T = TypeVar("T")
CELLS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
BORDER = 0.04  # a centre nearer than this to a line of the 3x3 grid is not asked about
GAP = 0.012  # empty space kept between two shapes
AREA = {"circle": 3.14, "square": 2.0, "triangle": 1.3, "star": 1.23, "cross": 2.06}  # at radius 1
GROW = {"circle": 0.88, "square": 1.0, "triangle": 1.12, "star": 1.22, "cross": 1.05}  # so all look about as big


@dataclass
class Object:
    shape: str
    colour: str
    x: float
    y: float
    r: float


@dataclass
class QA:
    task: str
    question: str
    answer: str


@dataclass
class Track:
    """When a video's object is visible (frames start to stop-1) and when and how it moves (dx, dy per frame)."""

    object: Object
    start: int
    stop: int
    move_start: int = 0
    move_stop: int = 0
    dx: float = 0.0
    dy: float = 0.0

    def at(self, frame: int) -> tuple[float, float] | None:
        if not self.start <= frame < self.stop:
            return None
        steps = min(max(frame - self.move_start, 0), self.move_stop - self.move_start)
        return self.object.x + steps * self.dx, self.object.y + steps * self.dy


@dataclass
class Sample:
    """One example: `image` or `frames` + `times`, or `text`, with its questions and the truth behind them.

    `glyphs` are the printed characters in reading order (an Object whose shape is the character and whose r is half
    its height); `tracks` belong to videos, where `objects` stand at their first position; `code_at` is the first of the
    two frames that show a code.
    """

    image: np.ndarray | None = None  # uint8 [H, W, 3] RGB
    frames: np.ndarray | None = None  # uint8 [F, H, W, 3] RGB, F even
    times: np.ndarray | None = None  # float64 [F], seconds
    text: str | None = None
    qa: list[QA] = field(default_factory=list)
    objects: list[Object] = field(default_factory=list)
    glyphs: list[Object] = field(default_factory=list)
    tracks: list[Track] = field(default_factory=list)
    code_at: int | None = None


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def phrase(o: Object) -> str:
    return f"{article(o.colour)} {o.colour} {o.shape}"


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def cell_of(o: Object) -> int:
    return min(int(o.y * 3), 2) * 3 + min(int(o.x * 3), 2)


def clear_of_borders(o: Object, margin: float = BORDER) -> bool:
    return all(abs(v - line) >= margin - 1e-9 for v in (o.x, o.y) for line in (1 / 3, 2 / 3))


def overlap(a: Object, b: Object, gap: float = GAP) -> bool:
    return (a.x - b.x) ** 2 + (a.y - b.y) ** 2 < (a.r + b.r + gap) ** 2


def largest(objects: Sequence[Object]) -> Object | None:
    """The object that is plainly the largest by radius and by area, if there is one."""
    if len(objects) < 2:
        return None
    best = max(objects, key=lambda o: o.r)
    plain = all(
        best.r >= 1.2 * o.r and AREA[best.shape] * best.r**2 >= 1.35 * AREA[o.shape] * o.r**2
        for o in objects
        if o is not best
    )
    return best if plain else None


def kinds(rng: np.random.Generator, n: int, distinct: bool = False) -> list[tuple[str, str]]:
    """n (shape, colour) pairs; often from few shapes or few colours, so that counts by kind reach high values."""
    shapes, colours = rng.permutation(5), rng.permutation(8)
    if distinct:
        pairs = rng.permutation(40)[:n]
        return [(SHAPES[p // 8], COLOURS[p % 8]) for p in pairs]
    if rng.random() < 0.5:
        shapes = shapes[: rng.integers(1, 4)]
    if rng.random() < 0.5:
        colours = colours[: rng.integers(1, 4)]
    return [
        (SHAPES[shapes[i % len(shapes)]], COLOURS[colours[j % len(colours)]])
        for i, j in zip(rng.integers(0, 5, n), rng.integers(0, 8, n), strict=True)
    ]


def radius_range(level: float, n: int) -> tuple[float, float]:
    high = (0.30, 0.25, 0.21, 0.18, 0.165, 0.155)[min(n, 6) - 1]
    return min(0.17 - 0.11 * level, 0.8 * high), high


def place(
    rng: np.random.Generator,
    level: float,
    names: Sequence[tuple[str, str]],
    in_cells: bool,
    avoid: Sequence[Object] = (),
) -> list[Object]:
    """Stand the named shapes apart from each other and from `avoid`; one per cell of the 3x3 grid if `in_cells`.

    Where `avoid` leaves too little room, the last names are left out.
    """
    low, high = radius_range(level, len(names) + (2 if avoid else 0))
    for attempt in itertools.count(1):
        if attempt % 40 == 0:
            names = names[:-1]
        high = max(high * 0.95, low)
        low = max(low * 0.98, 0.06)  # a crowded picture takes smaller shapes in the end
        objects: list[Object] = []
        cells = rng.permutation(9)
        for (shape, colour), cell in zip(names, cells, strict=False):
            r = min(float(np.exp(rng.uniform(np.log(low), np.log(high)))) * GROW[shape], 1 / 3 - BORDER - 0.01)
            for _ in range(8):
                box = [divmod(int(cell), 3)[1], divmod(int(cell), 3)[0]]
                ends = [(max(c / 3 + BORDER, r), min((c + 1) / 3 - BORDER, 1 - r)) for c in box]
                x, y = (float(rng.uniform(*(e if in_cells else (r, 1 - r)))) for e in ends)
                o = Object(shape, colour, x, y, r)
                if not any(overlap(o, other) for other in (*objects, *avoid)):
                    objects.append(o)
                    break
                r = max(0.85 * r, low * GROW[shape])
            else:
                break
        if len(objects) == len(names):
            return objects
    raise AssertionError("unreachable")


def make_one_largest(objects: list[Object]) -> None:
    """Shrink the others until one object is plainly the largest; leave the scene alone where they would vanish."""
    best = max(objects, key=lambda o: o.r)
    caps = [min(best.r / 1.25, best.r * (AREA[best.shape] / AREA[o.shape] / 1.4) ** 0.5) for o in objects]
    if all(o is best or cap >= 0.055 for o, cap in zip(objects, caps, strict=True)):
        for o, cap in zip(objects, caps, strict=True):
            o.r = o.r if o is best else min(o.r, cap)
