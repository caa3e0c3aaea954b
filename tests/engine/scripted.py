"""What tests of speculation share: a feed on a small random decoder, drafts that guess by a script, a fixed depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from fluvial.engine.depth import Depth
from fluvial.engine.depths import Depths
from fluvial.engine.draft import Context, Proposal, Seen
from fluvial.engine.feed import Feed
from fluvial.engine.sampling import Sampler, SamplingParams
from fluvial.engine.speculation import Decoding
from tests.models import zoo


class Fixed(Depth):
    """Always the same depth."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.fixed = depth

    def plan(self, room: int) -> int:
        return min(self.fixed, room)

    def cut(self, guesses: int, grade: int, chance: float = 0.0) -> int:
        return guesses


class FixedDepths(Depths):
    """The same depth for every draft."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth = depth

    def of(self, draft: str, plugins: Mapping[str, float] | None) -> Depth:
        return Fixed(self.depth)


@dataclass(frozen=True)
class Scripted:
    """Knows the `answer` that begins at token `start`; `script` says for each guess whether to tell the truth."""

    answer: Sequence[int]
    start: int
    script: Sequence[bool]
    seen: tuple[int, ...] = ()
    name: str = "scripted"

    def observe(self, seen: Seen) -> Scripted:
        assert seen.hidden is not None and seen.x is not None and len(seen.hidden) == len(seen.x)
        ids = (-1,) * len(seen.x) if seen.ids is None else tuple(seen.ids)
        assert len(ids) == len(seen.x)
        return replace(self, seen=self.seen + ids)

    def propose(self, context: Context, k: int) -> Proposal:
        at = len(self.seen) + 1 - self.start
        truth = self.answer[at : at + k]
        keep = [self.script[(at + i) % len(self.script)] for i in range(len(truth))] if self.script else []
        return Proposal([id if right else (id + 1) % zoo.VOCAB for id, right in zip(truth, keep, strict=False)])


def feed_of(name: str, prompt: Sequence[int], draft: Any = None) -> Feed:
    """A feed behind the prompt on a decoder of the zoo."""
    model: Any = SimpleNamespace(decoder=zoo.decoder(name))
    return Feed.start(model, draft=draft).ids(prompt)


def decoding(feed: Feed, depth: int, prompt: Sequence[int] = (), ends: Sequence[int] = (), **sampling: Any) -> Decoding:
    return Decoding(feed, Sampler(SamplingParams(**sampling)), Fixed(depth), list(prompt), ends)


def said(decoding: Decoding, n: int, room: int = 0) -> list[int]:
    """The next n tokens, of at least n + room to come."""
    ids = []
    for left in reversed(range(n)):
        ids.append(decoding.choose())
        decoding.take(ids[-1], left + room)
    return ids
