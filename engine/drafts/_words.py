"""`Words`: the part of a large vocabulary that a draft chooses from.

A head of 248k rows costs a third of a small model's forward for every token drafted. Byte-level vocabularies list their
entries in the order in which they were merged, frequent ones first: the first `SIZE` ids are a view of the head's rows,
and nothing is copied. What else was seen in the context is looked at too. Where many tokens lie outside (another
script), the whole head is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fluvial.adapters.lora import Route
from fluvial.models.decoder import Decoder

SIZE = 32_768
RECENT = 512  # ids outside that are kept, the newest
FADE, MOST_OUTSIDE = 0.98, 0.1  # share of the last fifty tokens or so


@dataclass(frozen=True)
class Words:
    """`others`: ids from `SIZE` on that were seen, oldest first. `outside`: the fading share of the model's tokens that
    could not have been guessed when they came."""

    others: tuple[int, ...] = ()
    outside: float = 0.0

    def seen(self, ids: Sequence[int]) -> Words:
        """After more ids."""
        if max(ids, default=0) < SIZE:
            return Words(self.others, self.outside * FADE ** len(ids))
        others, outside = dict.fromkeys(self.others), self.outside
        for id in ids:
            outside = FADE * outside + (1 - FADE) * (id >= SIZE and id not in others)
            if id >= SIZE:
                others.pop(id, None)
                others[id] = None
        return Words(tuple(others)[-RECENT:], outside)

    def pack(self) -> dict[str, str]:
        """As strings for a file."""
        return {"others": json.dumps(self.others), "outside": json.dumps(self.outside)}

    @classmethod
    def unpack(cls, about: Mapping[str, str]) -> Words:
        return cls(tuple(json.loads(about["others"])), float(json.loads(about["outside"])))

    def logits(self, decoder: Decoder, hidden: Tensor, route: Route | None) -> Tensor:
        """hidden [..., D] -> logits fp32 [..., vocab], -inf where nothing was computed."""
        vocab = decoder.config.vocab
        if vocab <= 2 * SIZE or self.outside > MOST_OUTSIDE:
            return decoder.logits(hidden, route).float()
        found = hidden.new_full((*hidden.shape[:-1], vocab), -torch.inf, dtype=torch.float32)
        found[..., :SIZE] = decoder.logits(hidden, route, slice(SIZE)).float()
        if self.others:
            rows = torch.tensor(self.others, device=hidden.device)
            found[..., rows] = decoder.logits(hidden, route, rows).float()
        return found
