"""`Feed`: the point where a conversation meets the decoder. Ids and embeddings go in, state and last logits stand
ready.

A feed is a value: `fork` is cheap, and nothing that one fork does is seen by another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fluvial.adapters import pages
from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.recording import TOKENS
from fluvial.engine.cache.chain import Chain
from fluvial.engine.cache.key import plugins_key
from fluvial.engine.draft import Draft, Seen
from fluvial.engine.model import Model
from fluvial.engine.plugins import Blend
from fluvial.engine.stretch import Part, Stretch, chunk_size, chunks, joined, placed, short
from fluvial.models.state import State


@dataclass(frozen=True)
class Feed:
    """`state` after `tokens` tokens, and `logits` fp32 [vocab] for the next one (None before the first). `draft` has
    seen the same tokens."""

    model: Model
    state: State
    logits: Tensor | None = None
    route: Blend | None = None
    draft: Draft | None = None
    tenant: str = ""
    chain: Chain | None = None  # what it has read, for the cache; None at the start and where nobody knows

    @classmethod
    def start(cls, model: Model, route: Blend | None = None, draft: Draft | None = None, tenant: str = "") -> Feed:
        """Before the first token. Feeds of different tenants share nothing in the cache."""
        return cls(model, model.decoder.init_state(route=route), None, route, draft, tenant)

    def under(self, route: Blend | None) -> Feed:
        """The same feed, going on with another route. Raises `UnsupportedError` where it would have begun otherwise."""
        if self.position == 0:
            return Feed.start(self.model, route, self.draft, self.tenant)
        starts = self.model.plugins.starts
        if starts(route) == starts(self.route):
            return replace(self, route=route)
        raise UnsupportedError(
            "A state plugin says how a session begins.",
            f"This one has read {self.position} tokens.",
            "Open a new session with it.",
        )

    @property
    def position(self) -> int:
        return self.state.position[0]

    def ids(self, ids: Iterable[int]) -> Feed:
        """After more token ids."""
        ids = tuple(ids)
        return self.behind(self.read([Stretch(ids)]), ids) if ids else self

    def behind(self, feed: Feed, symbols: Sequence[int | str]) -> Feed:
        """`feed`, which went on from here with `symbols`: ids, or what a medium is called."""
        if self.chain is None or self.chain.given_up:
            return feed if feed.chain is None else replace(feed, chain=None)
        chain = self.chain.read(symbols, plugins_key(self.route), feed.position, feed.state.shift)
        return replace(feed, chain=chain)

    @torch.no_grad()
    def read(self, stretches: Iterable[Stretch]) -> Feed:
        """After ids and embeddings in a row, many of which share a forward; `behind` gives account of them."""
        decoder, state, draft, hidden, anchor = self.model.decoder, self.state, self.draft, None, 0
        width = decoder.config.d_model
        for chunk in (few for many in chunks(stretches, chunk_size(width)) for few in short(many, width)):
            x = joined([self._embedded(part) for part in chunk])
            places, anchor = placed(chunk, state.rotary[0], anchor)
            positions = None if places is None else torch.cat(places, 2).to(decoder.device)
            hidden, state = decoder(x, state, positions=positions, route=self.route)
            if draft is not None:
                draft = self._seen(draft, chunk, places or [None] * len(chunk), x[0], hidden[0])
            if x.shape[1] > TOKENS:  # a recorded one leaves little memory behind
                pages.trim()
        if hidden is None:
            return self
        logits = decoder.logits(hidden[0, -1], self.route).float()
        return replace(self, state=state, logits=logits, draft=draft, chain=None)

    def _seen(
        self, draft: Draft, chunk: list[Part], places: Sequence[Tensor | None], x: Tensor, hidden: Tensor
    ) -> Draft:
        """The draft after a chunk: x [T, D or wider] and what came of it [T, D]."""
        at = 0
        for part, place in zip(chunk, places, strict=True):
            span, at = slice(at, at + len(part)), at + len(part)
            given = None if place is None or part.stretch.positions is None else place.to(x.device)
            draft = draft.observe(Seen(part.ids, x[span], hidden[span], given, self.route))
        return draft

    def _embedded(self, part: Part) -> Tensor:
        """[T, D or wider]"""
        decoder = self.model.decoder
        if part.stretch.x is not None:
            return part.stretch.x[part.start : part.end].to(decoder.dtype)
        return decoder.embed(torch.tensor([part.ids], device=decoder.device), self.route)[0]
