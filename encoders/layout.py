"""`Layout`: how one step of a picture or a video enters the token stream; `Viewing`: how a whole video does."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """One step in the stream: feed `lead` and `before` (texts and control tokens), the embeddings, `after`. The `lead`,
    plain text, is encoded as one with the text that it meets.

    `positions` int64 [3, tokens] (time, row, column) count from 0, the position of the token that would come next;
    None where media tokens stand in a row like text.
    """

    positions: Tensor | None = None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    lead: str = ""


@dataclass(frozen=True)
class Viewing:
    """How a tower wants a whole video: the frames on the screen at `times` (seconds, rising), and plain text around
    all of them, which is encoded as one with the text that it meets."""

    times: tuple[float, ...]
    before: str = ""
    after: str = ""
