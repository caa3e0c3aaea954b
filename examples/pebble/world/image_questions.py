"""What can be asked fairly about a still scene. Each function returns one question with its answer, or None.

A fair question has one answer that a careful person would also give: unique objects, plain margins, clear cells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from . import scene
from .scene import CELLS, COLOURS, SHAPES, Object, pick

Question = tuple[str, dict[str, str], str]  # what it is about, the slots of the phrasing, the answer


def _unique(rng: np.random.Generator, objects: Sequence[Object], key: Callable[[Object], str]) -> Object | None:
    """One of the objects that alone have their key."""
    counts = Counter(key(o) for o in objects)
    alone = [o for o in objects if counts[key(o)] == 1]
    return pick(rng, alone) if alone else None


def _colour(rng: np.random.Generator, objects: list[Object], in_cells: bool) -> Question | None:
    o = _unique(rng, objects, lambda o: o.shape)
    return (o.shape, {"thing": o.shape}, o.colour) if o else None


def _shape(rng: np.random.Generator, objects: list[Object], in_cells: bool) -> Question | None:
    o = _unique(rng, objects, lambda o: o.colour)
    return (o.colour, {"colour": o.colour}, o.shape) if o else None


def _count(rng: np.random.Generator, objects: list[Object], in_cells: bool) -> Question | None:
    return ("", {}, str(len(objects))) if objects else None


def matches(o: Object, shape: str | None, colour: str | None) -> bool:
    return shape in (None, o.shape) and colour in (None, o.colour)


def named(shape: str | None, colour: str | None, plural: bool = False) -> str:
    noun = shape or "shape"
    noun = (noun + ("es" if noun == "cross" else "s")) if plural else noun
    return f"{colour} {noun}" if colour else noun


def _count_by(rng: np.random.Generator, objects: list[Object], in_cells: bool) -> Question | None:
    if not objects:
        return None
    form = rng.random()
    shapes: Sequence[str | None] = SHAPES if form < 0.55 else (None,)
    colours: Sequence[str | None] = COLOURS if form >= 0.45 else (None,)
    by_count: dict[int, list[tuple[str | None, str | None]]] = {}
    for s in shapes:
        for c in colours:
            by_count.setdefault(sum(matches(o, s, c) for o in objects), []).append((s, c))
    absent = by_count.pop(0, [])
    if absent and (rng.random() < 0.2 or not by_count):
        s, c = pick(rng, absent)
        n = 0
    else:
        n = pick(rng, sorted(by_count))
        s, c = pick(rng, by_count[n])
    things = named(s, c, plural=True)
    return things, {"things": things}, str(n)


def _exists(rng: np.random.Generator, objects: list[Object], in_cells: bool) -> Question | None:
    if not objects:
        return None
    yes = rng.random() < 0.5
    s: str | None
    c: str | None
    form = rng.random()
    for _ in range(40):
        a = pick(rng, objects)
        if yes:
            s, c = a.shape, a.colour
        elif rng.random() < 0.7 and form < 0.6:  # hard: half of it is there, or both halves on different objects
            b = pick(rng, objects)
            s, c = (a.shape, b.colour if b is not a else pick(rng, COLOURS))
            s = pick(rng, SHAPES) if rng.random() < 0.3 else s
        else:
            s, c = pick(rng, SHAPES), pick(rng, COLOURS)
        s, c = (None if form > 0.8 else s), (None if 0.6 < form <= 0.8 else c)
        if any(matches(o, s, c) for o in objects) == yes:
            thing = named(s, c)
            return thing, {"thing": f"{scene.article(thing)} {thing}"}, "yes" if yes else "no"
    return None


def _position(rng: np.random.Generator, objects: list[Object], in_cells: bool) -> Question | None:
    if not in_cells:  # free scenes crowd the centre and the borders
        return None
    o = _unique(rng, objects, lambda o: o.colour + o.shape)
    if o is None:
        return None
    alone = sum(p.shape == o.shape for p in objects) == 1 and rng.random() < 0.4
    thing = o.shape if alone else named(o.shape, o.colour)
    return named(o.shape, o.colour), {"thing": thing}, CELLS[scene.cell_of(o)]


def _describe(rng: np.random.Generator, objects: list[Object], in_cells: bool) -> Question | None:
    if not in_cells or not 1 <= len(objects) <= 4:
        return None
    return "", {}, ", ".join(scene.phrase(o) for o in sorted(objects, key=scene.cell_of))


def _size(rng: np.random.Generator, objects: list[Object], in_cells: bool) -> Question | None:
    o = scene.largest(objects)
    return ("", {}, o.shape) if o else None


ASK: dict[str, Callable[[np.random.Generator, list[Object], bool], Question | None]] = {
    "colour": _colour, "shape": _shape, "count": _count, "count_by": _count_by, "exists": _exists,
    "position": _position, "describe": _describe, "size": _size,
}  # fmt: skip
