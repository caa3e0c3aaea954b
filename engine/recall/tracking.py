"""Variable tracking (RULER): a value is handed from variable to variable, far apart; which ones hold it?"""

from __future__ import annotations

from fluvial.engine.recall import filler
from fluvial.engine.recall.task import Draw, Question, Room, Stream, Task

HOPS = 3


def variables(draw: Draw, room: Room) -> Stream:
    rng = draw.rng()
    names = [f"X{name.upper()}" for name in filler.names(rng, 2 * (HOPS + 1))]
    chains, values = (names[: HOPS + 1], names[HOPS + 1 :]), filler.numbers(rng, 2, 5)
    since = 0
    for hop in range(HOPS + 1):
        for which, (chain, value) in enumerate(zip(chains, values, strict=True)):
            yield from filler.until(rng, room, (2 * hop + which + draw.depth) / (2 * (HOPS + 1)))
            yield f"VAR {chain[hop]} = {'VAR ' + chain[hop - 1] if hop else value}. "
            since = room.used if not hop and not which else since
    yield from filler.until(rng, room, 1)
    text = f"Find all variables that are assigned the value {values[0]}, directly or through other variables."
    return [Question(text, tuple(chains[0]), since, tuple(chains[1]))]


TASKS = (Task("variables", f"all {HOPS + 1} variables that hold a value, through {HOPS} assignments", variables),)
