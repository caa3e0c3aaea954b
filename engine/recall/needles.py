"""Pass key and needles in filler: one, one among several keys, several values of one key, several queries.

Pass key after Mohtashami & Jaggi 2023; the needles after RULER (Hsieh et al. 2024), whose numbers by name they are. Of
several queries each is a question of its own, so that each has its age.
"""

from __future__ import annotations

from collections.abc import Callable

from fluvial.engine.recall import filler
from fluvial.engine.recall.task import Draw, Question, Room, Stream, Task

MANY = 4


def passkey(draw: Draw, room: Room) -> Stream:
    rng = draw.rng()
    (key,) = filler.numbers(rng, 1, 5)
    yield from filler.until(rng, room, draw.depth)
    yield f"The pass key is {key}. Remember it. "
    since = room.used
    yield from filler.until(rng, room, 1)
    return [Question("What is the pass key?", (key,), since)]


def needle(keys: int, values: int, queries: int) -> Callable[[Draw, Room], Stream]:
    """`keys` names with `values` numbers each; `queries` of the names are asked for."""

    def stream(draw: Draw, room: Room) -> Stream:
        rng = draw.rng()
        names = filler.names(rng, keys)
        numbers = filler.numbers(rng, keys * values, 4)
        facts = [(name, numbers[k * values + v]) for v in range(values) for k, name in enumerate(names)]
        order = rng.permutation(len(facts)).tolist()
        read: dict[str, int] = {}
        for place, fact in enumerate(order):  # the first one asked for stands at the depth, the others further on
            share = draw.depth if len(facts) == 1 else (place + draw.depth) / len(facts)
            yield from filler.until(rng, room, share)
            name, number = facts[fact]
            yield f"The value of {name} is {number}. "
            read.setdefault(name, room.used)
        yield from filler.until(rng, room, 1)
        told = {name: tuple(n for k, n in facts if k == name) for name in names}
        asked = [names[i] for i in rng.permutation(keys)[:queries].tolist()]
        text = "What is the value of {}?" if values == 1 else "What are all the values of {}?"
        return [Question(text.format(name), told[name], read[name]) for name in asked]

    return stream


TASKS = (
    Task("passkey", "a five-digit pass key in filler", passkey),
    Task("needle", "the value of one name", needle(1, 1, 1)),
    Task("needle-multi-key", f"one of {MANY} names is asked for", needle(MANY, 1, 1)),
    Task("needle-multi-value", f"all {MANY} values of one name", needle(1, MANY, 1)),
    Task("needle-multi-query", f"{MANY} names, each asked for", needle(MANY, 1, MANY)),
)
