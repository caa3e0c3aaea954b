"""Look-up (Saxena 2023): what followed the last tokens where they stood before, in prompt, answers and media's text.

The tokens so far lie in blocks of fixed size, each with an index from every pair of neighbours to where it ended last,
and links from there to earlier places: one look-up per block finds the newest places, and the one with the longest
common past wins. Full blocks never change and are shared; the last one grows in place for whoever stands at its end,
and anyone else copies it. So a fork costs at most one block, and memory is bounded: the oldest block goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch

from fluvial.engine.draft import Context, Packed, Proposal, Seen
from fluvial.engine.model import Model

BLOCK = 1024  # tokens
MOST_BLOCKS = 64
PLACES = 8  # newest ones that are compared
LONGEST = 16  # tokens of common past that count
CHANCES = (0.35, 0.55, 0.8, 0.95)  # that the next is alike too behind 2, 4, 8, 16 alike, on code and prose
MEDIUM = -1  # stands where a medium does: nothing is quoted across it
NOTHING = -2  # in front of the first token


@dataclass
class _Block:
    """Tokens from place `start` on, behind the token `before`. `last`: a pair -> the place behind its newest
    occurrence; `earlier[i]`: where the pair that ends with token i stood before that, or -1."""

    start: int
    before: int
    ids: list[int] = field(default_factory=list)
    last: dict[tuple[int, int], int] = field(default_factory=dict)
    earlier: list[int] = field(default_factory=list)

    def append(self, id: int) -> None:
        pair = (self.ids[-1] if self.ids else self.before, id)
        self.ids.append(id)
        self.earlier.append(self.last.get(pair, -1))
        self.last[pair] = self.start + len(self.ids)

    def copy(self, end: int) -> _Block:
        """The tokens in front of the place `end`."""
        copy = _Block(self.start, self.before)
        for id in self.ids[: end - self.start]:
            copy.append(id)
        return copy


@dataclass(frozen=True)
class NGram:
    """`length` tokens, of which `blocks` hold the newest."""

    blocks: tuple[_Block, ...]
    length: int
    name: str = "ngram"

    def observe(self, seen: Seen) -> NGram:
        blocks, ids = self.blocks, [MEDIUM] if seen.ids is None else seen.ids
        head = blocks[-1]
        if head.start + len(head.ids) != self.length:  # another fork went on from here
            head = head.copy(self.length)
            blocks = (*blocks[:-1], head)
        for id in ids:
            if len(head.ids) == BLOCK:
                head = _Block(head.start + BLOCK, head.ids[-1])
                blocks = (*blocks[1 - MOST_BLOCKS :], head)
            head.append(id)
        return NGram(blocks, self.length + len(ids))

    def propose(self, context: Context, k: int) -> Proposal:
        past = [*self._newest(LONGEST - 1), context.history[-1]]
        if len(past) < 2:
            return Proposal()
        found = [(self._common(place, past), place) for place in islice(self._places((past[-2], past[-1])), PLACES)]
        if not found:
            return Proposal()
        common, place = max(found)
        text = past[-1:]  # stands at the place `length`; the guesses follow it
        for at in range(place, place + k):
            id = self._at(at) if at < self.length else text[at - self.length]
            if id == MEDIUM:
                break
            text.append(id)
        grade = common.bit_length()
        return Proposal(text[1:], grade=grade, chance=CHANCES[grade - 2])

    def pack(self) -> Packed:
        return {"ids": torch.tensor([id for block in self.blocks for id in block.ids], dtype=torch.int32)}, {}

    def unpack(self, packed: Packed) -> NGram:
        return self.observe(Seen(packed[0]["ids"].tolist()))

    def _at(self, place: int) -> int:
        block, at = divmod(place - self.blocks[0].start, BLOCK)
        return self.blocks[block].ids[at]

    def _newest(self, n: int) -> list[int]:
        first = max(self.blocks[0].start, self.length - n)
        return [self._at(place) for place in range(first, self.length)]

    def _places(self, pair: tuple[int, int]) -> Iterator[int]:
        """The places behind a pair, newest first."""
        for block in reversed(self.blocks):
            place = block.last.get(pair, -1)
            while place >= 0:
                if place <= self.length:  # what lies behind is another fork's
                    yield place
                place = block.earlier[place - block.start - 1]

    def _common(self, place: int, past: list[int]) -> int:
        """How many tokens in front of the place are those of `past`; two are known to be."""
        most = min(len(past), place - self.blocks[0].start)
        return next((n for n in range(2, most) if self._at(place - 1 - n) != past[-1 - n]), max(2, most))


def start(model: Model) -> NGram:
    """Every model can be drafted for like this."""
    return NGram((_Block(0, NOTHING),), 0)
