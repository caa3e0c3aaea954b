"""Text to read past: endless sentences that state nothing anybody asks for, and have no digits."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from fluvial.engine.recall.task import Piece, Room

_WORDS = """
farmer, sailor, teacher, painter, doctor, baker, singer, pilot, gardener, writer, miller, judge
watched, carried, found, sold, repaired, described, forgot, followed, painted, counted, visited, praised
bridge, garden, wagon, letter, river, window, basket, market, meadow, kitchen, tower, harbour, orchard, candle
quiet, narrow, bright, old, heavy, distant, wooden, gentle, crowded, frozen, empty, green
in the morning, at noon, before the rain, after supper, last winter, on a Sunday, without a word, again
"""
PEOPLE, VERBS, THINGS, LOOKS, TIMES = (tuple(line.split(", ")) for line in _WORDS.strip().splitlines())


def word(rng: np.random.Generator, words: Sequence[str]) -> str:
    """One of them."""
    return words[int(rng.integers(len(words)))]


def sentence(rng: np.random.Generator) -> str:
    """One sentence, a blank behind it."""
    thing = f"{word(rng, LOOKS)} {word(rng, THINGS)}"
    return f"The {word(rng, PEOPLE)} {word(rng, VERBS)} the {thing} {word(rng, TIMES)}. "


def until(rng: np.random.Generator, room: Room, share: float) -> Generator[Piece, None, None]:
    """Sentences until `share` of the stream was read."""
    while room.before(share):
        yield sentence(rng)


def names(rng: np.random.Generator, count: int) -> list[str]:
    """Different names that are no words: bofen, katir, ..."""
    found: dict[str, None] = {}
    while len(found) < count:
        letters = [word(rng, kind) for kind in ("bdfgklmnprstvz", "aeiou", "bdfgklmnprstvz", "aeiou", "lnrst")]
        found["".join(letters)] = None
    return list(found)


def numbers(rng: np.random.Generator, count: int, digits: int) -> list[str]:
    """Different numbers of so many digits."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[str(rng.integers(10 ** (digits - 1), 10**digits))] = None
    return list(found)
