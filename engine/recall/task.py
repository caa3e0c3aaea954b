"""`Task`: what a memory test is made of. Its generator yields pieces to read and returns the questions."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from fluvial.encoders.frame import Frame

Piece = str | Frame


@dataclass
class Room:
    """How long a stream is to be, and how much of it was read: tokens of a text, frames of a video. The reader counts
    `used` up between two pieces."""

    length: int
    used: int = 0

    def before(self, share: float) -> bool:
        """Whether less than this share of the stream was read."""
        return self.used < share * self.length


@dataclass(frozen=True)
class Draw:
    """Where a sample comes from: `seed` of its random numbers, `depth` 0..1 of what is to be remembered, and which
    `turn` of its circle this is. All turns draw the same numbers."""

    seed: tuple[int, ...]
    depth: float = 0.5
    turn: int = 0

    def rng(self) -> np.random.Generator:
        """From the beginning."""
        return np.random.default_rng(self.seed)


@dataclass(frozen=True)
class Question:
    """A right answer names all `answers` and none of the `others`. `since`: how much had been read when the fact was
    complete; the difference to the stream's end is the age of the memory."""

    text: str
    answers: tuple[str, ...]
    since: int
    others: tuple[str, ...] = ()


Stream = Generator[Piece, None, list[Question]]


@dataclass(frozen=True)
class Task:
    """`turns` of a circle; `chance`: how often a circle is right that is guessed evenly among the options."""

    name: str
    about: str
    stream: Callable[[Draw, Room], Stream]
    turns: int = 1
    chance: float = 0.0
    video: bool = False
