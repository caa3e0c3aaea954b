"""What an answer is made of, as it streams out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """Figures of one answer. Seconds are wall time; rates are tokens per second; bytes are what the session holds.
    `forwards` of the model gave the tokens; `accepted_tokens` of them were guessed, in `drafted_tokens` guesses of
    `draft`, which makes none where they would not pay. `cached_tokens` of the prompt came from the cache;
    `cache_misses`: why others did not, () without a cache."""

    prompt_tokens: int
    media_tokens: int
    completion_tokens: int
    prompt_seconds: float
    completion_seconds: float
    state_bytes: int
    tape_bytes: int
    position: int
    forwards: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    cached_tokens: int = 0
    cache_misses: tuple[str, ...] = ()
    draft: str = "none"

    @property
    def prompt_rate(self) -> float:
        """Of those that were read now."""
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def completion_rate(self) -> float:
        return self.completion_tokens / self.completion_seconds if self.completion_seconds else 0.0


@dataclass(frozen=True)
class Token:
    """A piece of the answer: always whole characters; empty while a character or a stop string is incomplete."""

    text: str
    id: int


@dataclass(frozen=True)
class Done:
    """The end of an answer: its whole text, why it ended ("end", "length", "stop"), and the figures."""

    text: str
    reason: str
    usage: Usage


Event = Token | Done


@dataclass(frozen=True)
class PushResult:
    """What became of a push: tokens fed now, pictures seen, and a warning for a damaged video. In a live session, which
    feeds later: whether it was `accepted` into the queue, and how many frames were `dropped` for it (or itself)."""

    tokens: int
    frames: int = 0
    warning: str = ""
    accepted: bool = True
    dropped: int = 0
