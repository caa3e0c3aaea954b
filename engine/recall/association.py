"""Multi-query associative recall (MQAR, Arora et al. 2023): many pairs at once, then some of the keys. How many pairs
a state holds is what separates recurrent models; the stream's length says how many there are."""

from __future__ import annotations

from fluvial.engine.recall import filler
from fluvial.engine.recall.task import Draw, Question, Room, Stream, Task

FEWEST, MOST, TOKENS_PER_PAIR, QUERIES = 4, 64, 32, 4


def pairs_of(length: int) -> int:
    """How many pairs a stream of so many tokens has."""
    return max(FEWEST, min(MOST, length // TOKENS_PER_PAIR))


def mqar(draw: Draw, room: Room) -> Stream:
    rng = draw.rng()
    count = pairs_of(room.length)
    keys, values = filler.names(rng, count), filler.numbers(rng, count, 3)
    read = {}
    yield from filler.until(rng, room, draw.depth / 2)
    for key, value in zip(keys, values, strict=True):
        yield f"{key} = {value}\n"
        read[key] = room.used
    yield from filler.until(rng, room, 1)
    asked = rng.permutation(count)[:QUERIES].tolist()
    return [Question(f"What is the value of {keys[i]}?", (values[i],), read[keys[i]]) for i in asked]


TASKS = (Task("mqar", f"{FEWEST} to {MOST} pairs (a pair for {TOKENS_PER_PAIR} tokens), {QUERIES} asked for", mqar),)
