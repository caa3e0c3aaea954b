"""Memory of a video: a needle frame, the order of events, how many there were, a code that flashed up long ago.

An event fills two frames from an even one on, so that models that look at frames in pairs see it whole.
"""

from __future__ import annotations

from collections.abc import Generator

from fluvial.engine.recall import filler
from fluvial.engine.recall.pictures import COLOURS, SHAPES, Ground
from fluvial.engine.recall.task import Draw, Piece, Question, Room, Stream, Task

EVENT = 2  # frames
Things = list[tuple[str, str] | str]


def _shown(ground: Ground, room: Room, things: Things, depth: float) -> Generator[Piece, None, list[int]]:
    """Empty frames with the things in them, the first at `depth` of its part of the stream; gives when each was read.
    There is room for every event, and the stream is an even number of frames."""
    pairs = max(room.length // EVENT, len(things))
    share = pairs / max(1, len(things))
    places = {int(share * (i + depth)): thing for i, thing in enumerate(things)}
    read = []
    for pair in range(pairs):
        thing = places.get(pair)
        for index in range(EVENT * pair, EVENT * (pair + 1)):
            code = thing if isinstance(thing, str) else ""
            yield ground.frame(index, thing if isinstance(thing, tuple) else None, code)
        if thing is not None:
            read.append(room.used)
    return read


def needle(draw: Draw, room: Room) -> Stream:
    """Each turn has another colour."""
    rng = draw.rng()
    ground, colours = Ground(rng), list(COLOURS)
    shape, first = filler.word(rng, list(SHAPES)), int(rng.integers(len(colours)))
    colour = colours[(first + draw.turn) % len(colours)]
    (since,) = yield from _shown(ground, room, [(colour, shape)], draw.depth)
    return [Question(f"What colour is the {shape}?", (colour,), since, tuple(c for c in colours if c != colour))]


def order(draw: Draw, room: Room) -> Stream:
    """Each turn begins with another of three things."""
    rng = draw.rng()
    ground, colours = Ground(rng), [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))]
    things = [(colours[i], SHAPES[j]) for i, j in enumerate(rng.permutation(len(SHAPES)).tolist())]
    things = things[draw.turn :] + things[: draw.turn]
    since = yield from _shown(ground, room, list(things), draw.depth)
    truth, *others = (" ".join(thing) for thing in things)
    return [Question("Which object appears first?", (truth,), since[0], tuple(others))]


def count(draw: Draw, room: Room) -> Stream:
    """One thing in the first turn, or as many as the draw begins with, and so on round to four."""
    rng = draw.rng()
    ground = Ground(rng)
    number = (int(rng.integers(4)) + draw.turn) % 4 + 1
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    things = [kinds[i] for i in rng.permutation(len(kinds))[:4].tolist()][:number]
    since = yield from _shown(ground, room, list(things), draw.depth)
    others = tuple(str(n) for n in range(10) if n != number)
    return [Question("How many objects appeared in total?", (str(number),), since[0], others)]


def code(draw: Draw, room: Room) -> Stream:
    rng = draw.rng()
    (digits,) = filler.numbers(rng, 1, 3)
    (since,) = yield from _shown(Ground(rng), room, [digits], draw.depth)
    return [Question("What code was shown?", (digits,), since)]


TASKS = (
    Task("video-needle", "the colour of the only thing in the video", needle, 4, 1 / 4**4, video=True),
    Task("video-order", "which of three things came first", order, 3, 1 / 3**3, video=True),
    Task("video-count", "how many things came, one to four", count, 4, 1 / 4**4, video=True),
    Task("video-code", "a three-digit code that flashed up", code, video=True),
)
