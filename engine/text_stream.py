"""Streamed text: bytes of tokens in, text out that is whole characters, free of stop strings and never taken back.

Bytes that may be the beginning of a character are held back, and so is text that may be the beginning of a stop string.
The stream stops where a stop string is complete for the first time (the longest one, if several end there); what comes
before it has been given out, the stop string itself is not. However the bytes are cut up, the text is the same.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from fluvial.adapters.errors import UsageError


class TextStream:
    """One answer. `stopped` is the stop string that ended it, None so far."""

    def __init__(self, stop: str | Sequence[str] = ()) -> None:
        """`stop`: the stop strings. Errors: UsageError for an empty one."""
        self._stop = [stop] if isinstance(stop, str) else list(stop)
        if not all(isinstance(text, str) and text for text in self._stop):
            raise UsageError(f"A stop string is empty or no text: {self._stop!r:.80}.")
        self._longest = max(map(len, self._stop), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._finished = False
        self.stopped: str | None = None

    @property
    def holding(self) -> bool:
        """Whether bytes or text are held back: what was given out is less than what was pushed."""
        return bool(self._held or self._decoder.getstate()[0])

    def push(self, data: bytes) -> str:
        """The text that `data` (a token's bytes) makes certain; nothing once stopped. Invalid UTF-8 becomes U+FFFD.

        Errors: UsageError after `finish`."""
        if self._finished:
            raise UsageError("The text stream is finished.")
        return self._add(self._decoder.decode(data))

    def finish(self) -> str:
        """The text held back, an incomplete character as U+FFFD; nothing the second time."""
        if self._finished:
            return ""
        text = self._add(self._decoder.decode(b"", final=True))
        self._finished = True
        held, self._held = self._held, ""
        return text + held

    def _add(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + text
        found = [(at + len(stop), -len(stop), stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            end, _, self.stopped = min(found)
            self._held = ""
            return text[: end - len(self.stopped)]
        certain = len(text) - self._undecided(text)
        self._held = text[certain:]
        return text[:certain]

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = min(self._longest - 1, len(text))
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stop)), 0)
