"""`Draft`: what guesses the next tokens, so that one forward of the model checks several at once.

A draft is a value that goes with the feed: `observe` returns what it becomes, and nothing that one fork does is seen by
another. Whatever it proposes, the answer's tokens are the model's own (`speculation.py`): a bad guess only costs time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from fluvial.engine.depth import PRIOR
from fluvial.engine.plugins import Blend
from fluvial.engine.sampling import Sampler

Packed = tuple[Mapping[str, Tensor], Mapping[str, str]]


@dataclass(frozen=True)
class Seen:
    """T tokens that entered the memory: embeddings x [T, D or wider] as the decoder read them, what it made of them
    (hidden [T, D], behind its final norm), and the ids, None for a medium. `positions` int64 [3, 1, T] are those that
    a medium rotates by. x and hidden are None where only the ids are known: memory that was read in another run."""

    ids: Sequence[int] | None
    x: Tensor | None = None
    hidden: Tensor | None = None
    positions: Tensor | None = None
    route: Blend | None = None


@dataclass(frozen=True)
class Context:
    """What to go on from: the recent token ids, of which the last is chosen but not in the memory yet, and how tokens
    are chosen. `history` is valid during the call only."""

    history: Sequence[int]
    sampler: Sampler
    route: Blend | None = None


@dataclass(frozen=True)
class Proposal:
    """Guesses for the tokens that come next, in order. `probs` fp32 [n, V] are the distributions that they were drawn
    from with the context's sampler (whether a guess is given may then depend on those before it, not on itself); None
    where no chance was involved. `grade` says how sure the draft is, as a small number of its own meaning: acceptance
    is counted for each grade. `chance`: what the draft takes the first guess's for, which counts until more is known.

    A tree has `parents`: guess i follows guess parents[i] < i, or what is chosen (-1). Likely guesses come first, none
    of them was drawn, none ends the answer, and those with the same parent differ. None: each follows the one before.
    """

    tokens: Sequence[int] = ()
    probs: Tensor | None = None
    grade: int = 0
    parents: Sequence[int] | None = None
    chance: float = PRIOR

    def cut(self, n: int) -> Proposal:
        """The first n guesses."""
        if n >= len(self.tokens):
            return self
        probs = None if self.probs is None else self.probs[:n]
        parents = None if self.parents is None else self.parents[:n]
        return replace(self, tokens=self.tokens[:n], probs=probs, parents=parents)

    @property
    def chain(self) -> Proposal:
        """The likeliest path of a tree, as a chain."""
        if self.parents is None:
            return self
        path: list[int] = []
        for guess, parent in enumerate(self.parents):
            if parent == (path[-1] if path else -1):
                path.append(guess)
        return replace(self, tokens=[self.tokens[guess] for guess in path], probs=None, parents=None)


class Draft(Protocol):
    """A method of guessing, in the state that what was seen so far gave it."""

    @property
    def name(self) -> str:
        """As users spell it."""
        ...

    def observe(self, seen: Seen) -> Draft:
        """The draft after more tokens. Called for all that enters the memory, prompt and media included."""
        ...

    def propose(self, context: Context, k: int) -> Proposal:
        """At most k >= 1 guesses for what follows the context; none where it has no idea."""
        ...

    def pack(self) -> Packed:
        """All that it has seen, as tensors and strings for a file."""
        ...

    def unpack(self, packed: Packed) -> Draft:
        """What `pack` gave, to a draft before the first token. Errors: IntegrityError for another head's or model's."""
        ...
