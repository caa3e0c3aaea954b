"""`Layout`: how one step of a picture or a video enters the token stream."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """One step in the stream: feed `before` (texts and control tokens), the embeddings, `after`.

    `positions` int64 [3, tokens] (time, row, column) count from 0, the position of the token that would come next;
    None where media tokens stand in a row like text.
    """

    positions: Tensor | None = None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
