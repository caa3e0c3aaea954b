"""State tracking: every piece of the stream changes the answer. Parity, and permutations of five things (S5), which
no model of bounded depth without a state follows for long (Merrill et al. 2024)."""

from __future__ import annotations

from fluvial.engine.recall import filler
from fluvial.engine.recall.task import Draw, Question, Room, Stream, Task

FRUIT = ("apple", "pear", "plum", "fig", "lime")


def parity(draw: Draw, room: Room) -> Stream:
    """The second turn of a circle is the same with another first bit."""
    rng = draw.rng()
    bit = int(rng.integers(2)) ^ draw.turn
    ones = bit
    yield f"Bits: {bit} "
    while room.before(1):
        bits = rng.integers(0, 2, 8).tolist()
        ones ^= sum(bits) % 2
        yield " ".join(map(str, bits)) + " "
    truth, other = ("odd", "even") if ones else ("even", "odd")
    return [Question("Is the number of ones even or odd?", (truth,), 0, (other,))]


def permutations(draw: Draw, room: Room) -> Stream:
    """Each turn asks for another box, so that a circle is the whole permutation."""
    rng = draw.rng()
    boxes = list(FRUIT)
    yield "There are five boxes. " + " ".join(f"Box {i} holds the {fruit}." for i, fruit in enumerate(boxes, 1)) + " "
    while room.before(1):
        i, j = rng.permutation(len(boxes))[:2].tolist()
        boxes[i], boxes[j] = boxes[j], boxes[i]
        yield f"Swap boxes {i + 1} and {j + 1}. "
    asked = (int(rng.integers(len(boxes))) + draw.turn) % len(boxes)
    others = tuple(fruit for fruit in FRUIT if fruit != boxes[asked])
    return [Question(f"Which fruit is in box {asked + 1}?", (boxes[asked],), 0, others)]


def copy(draw: Draw, room: Room) -> Stream:
    rng = draw.rng()
    line = " ".join(filler.names(rng, 8))
    yield from filler.until(rng, room, draw.depth)
    yield f"\nRemember this line: {line}\n"
    since = room.used
    yield from filler.until(rng, room, 1)
    return [Question("Repeat the line to remember, word by word.", (line,), since)]


TASKS = (
    Task("parity", "even or odd many ones, whatever the first bit", parity, turns=2, chance=1 / 4),
    Task("s5", "five boxes after many swaps, each asked for", permutations, turns=5, chance=1 / 5**5),
    Task("copy", "eight made-up words, in order", copy),
)
