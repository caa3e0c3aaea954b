"""`Snapshot`: all that a conversation remembers at one moment, as a value that is shared, kept and saved."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fluvial.encoders.frame import Frame
from fluvial.engine.feed import Feed
from fluvial.engine.template import Media, Part

RECENT = 1024  # token ids kept for the repetition penalty


@dataclass(frozen=True)
class Repeat:
    """What the template renders for one more step of live frames behind another. Once two in a row are alike (it does
    not number them), the next ones need no template."""

    parts: tuple[Part, ...] = ()
    alike: int = 0

    @property
    def known(self) -> bool:
        return self.alike >= 2

    def after(self, parts: Sequence[Part]) -> Repeat:
        """The pattern after one more step was rendered as `parts`."""
        plain = tuple(replace(part, index=0) if isinstance(part, Media) else part for part in parts)
        return Repeat(plain, self.alike + 1 if plain == self.parts else 1)


@dataclass(frozen=True)
class Snapshot:
    """A session's whole memory at one moment."""

    feed: Feed
    messages: tuple[dict[str, Any], ...] = ()
    open_turn: tuple[dict[str, Any], ...] = ()  # parts of the user's turn that are fed already
    fed: tuple[Part, ...] = ()
    repeat: Repeat = Repeat()  # how one more step of live frames is fed
    streamed: int = 0  # tokens in memory that `fed` does not show
    tail: str = ""  # text behind the last medium, to be fed as one with what follows
    media: tuple[str, ...] = ()  # digests
    ids: tuple[int, ...] = ()  # recent token ids, for the repetition penalty
    sampler: Tensor | None = None
    waiting: tuple[Frame, ...] = ()  # frames that do not fill a video step yet
    new_tokens: int = 0
    new_media_tokens: int = 0
    new_cached_tokens: int = 0
    new_misses: tuple[str, ...] = ()
    new_seconds: float = 0.0


def add_digest(digests: Sequence[str], digest: str, streamed: bool) -> list[str]:
    """`digests` with one more medium, or with its last one going on."""
    if not streamed or not digests:
        return [*digests, digest]
    return [*digests[:-1], hashlib.sha256((digests[-1] + digest).encode()).hexdigest()]
