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
from fluvial.encoders.layout import Layout
from fluvial.engine.cache.chain import Chain
from fluvial.engine.cache.key import plugins_key
from fluvial.engine.draft import Draft, Seen
from fluvial.engine.model import Model
from fluvial.engine.plugins import Blend
from fluvial.models.state import State

CHUNK = 512  # tokens fed at once
FEW = 16  # tokens whose forward leaves little memory behind


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

    def ids(self, ids: Iterable[int], *, more: bool = False) -> Feed:
        """After more token ids. With `more` to come at once, there are no logits: the head is not read for them."""
        ids = list(ids)
        if not ids:
            return self
        table = torch.tensor([ids], device=self.model.decoder.device)
        return self.behind(self._after(self.model.decoder.embed(table, self.route)[0], None, ids, more), ids)

    def apart(self) -> Feed:
        """The same without account of what it reads from here on; `behind` takes it up again."""
        return replace(self, chain=None)

    def behind(self, feed: Feed, symbols: Sequence[int | str]) -> Feed:
        """`feed`, which went on from here with `symbols`: ids, or what a medium is called."""
        if self.chain is None or self.chain.given_up:
            return feed if feed.chain is None else feed.apart()
        chain = self.chain.read(symbols, plugins_key(self.route), feed.position, feed.state.shift)
        return replace(feed, chain=chain)

    def step(self, x: Tensor, layout: Layout) -> Feed:
        """After one step of a medium: its embeddings x [T, D] and the words around them."""
        encode = self.model.tokenizer.encode
        before, after = (encode("".join(texts), special=True, first=False) for texts in (layout.before, layout.after))
        lead = encode(layout.lead, special=False, first=False)
        return self.ids([*lead, *before], more=True).embeddings(x, layout.positions, more=bool(after)).ids(after)

    @torch.no_grad()
    def embeddings(self, x: Tensor, positions: Tensor | None = None, *, more: bool = False) -> Feed:
        """After more embeddings x [T, D]; rotary `positions` [3, T] count from the next token's. `more` as for ids."""
        return self._after(x, positions, None, more)

    @torch.no_grad()
    def _after(self, x: Tensor, positions: Tensor | None, ids: list[int] | None, more: bool) -> Feed:
        decoder, state, draft = self.model.decoder, self.state, self.draft
        chunks = x.to(decoder.dtype)[None].split(CHUNK, 1)
        places: Sequence[Tensor | None] = [None] * len(chunks)
        if positions is not None:
            places = (positions[:, None].to(decoder.device) + state.rotary[0]).split(CHUNK, 2)
        for i, (chunk, place) in enumerate(zip(chunks, places, strict=True)):
            hidden, state = decoder(chunk, state, positions=place, route=self.route)
            if draft is not None:
                part = None if ids is None else ids[i * CHUNK : (i + 1) * CHUNK]
                draft = draft.observe(Seen(part, chunk[0], hidden[0], place, self.route))
            if chunk.shape[1] > FEW:
                pages.trim()
        logits = None if more else decoder.logits(hidden[0, -1], self.route).float()
        return replace(self, state=state, logits=logits, draft=draft, chain=None)
