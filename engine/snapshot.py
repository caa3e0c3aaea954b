"""`Snapshot`: all that a conversation remembers at one moment, as a value that is shared, kept and saved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fluvial.encoders.frame import Frame
from fluvial.engine.feed import Feed
from fluvial.engine.template import Part

RECENT = 1024  # token ids kept for the repetition penalty


@dataclass(frozen=True)
class Snapshot:
    """A session's whole memory at one moment."""

    feed: Feed
    messages: tuple[dict[str, Any], ...] = ()
    open_turn: tuple[dict[str, Any], ...] = ()  # parts of the user's turn that are fed already
    fed: tuple[Part, ...] = ()
    tail: str = ""  # text behind the last medium, to be fed as one with what follows
    media: tuple[str, ...] = ()  # digests
    ids: tuple[int, ...] = ()  # recent token ids, for the repetition penalty
    sampler: Tensor | None = None
    waiting: tuple[Frame, ...] = ()  # frames that do not fill a video step yet
    new_tokens: int = 0
    new_media_tokens: int = 0
    new_seconds: float = 0.0
