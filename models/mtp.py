"""`Mtp`: the head for multi-token prediction of Qwen3.5 and Qwen3-Next. It drafts the token after the next one.

    x_t = W [norm(e_{t+1}); norm(h_t)];  h'_t = norm(blocks(x_t));  the decoder's own head on h'_t gives token t + 2

h is what the decoder returns, behind its final norm, and h' goes on behind the head's own: the head norms them again,
so either form runs, and only acceptance tells. Engines with the published weights measured it: Qwen3.5-0.8B 2.74 tokens
a forward against 1.80 with h before the norm (LightLLM, pull request 1402); Qwen3.6 more accepted so, by moving both
places (llama.cpp, 24025 and 23198); vLLM's `qwen3_next_mtp` takes the same. e is the decoder's embedding of a token. A
chain goes on with h' in place of h and the drafted token as the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, overload

import torch
from torch import Tensor, nn

from fluvial.adapters.errors import UsageError
from fluvial.adapters.linear import Linear
from fluvial.adapters.lora import Route
from fluvial.adapters.norm import norm
from fluvial.models.decoder import BlockConfig, Decoder, DecoderConfig
from fluvial.models.journal import Journal
from fluvial.models.state import State


class Mtp(nn.Module):
    """A few blocks of its own on the hidden states of a decoder. Its state is a `State` like any other: row t of it is
    the pair (h_t, token t + 1), so it stands one token behind the decoder's."""

    def __init__(self, decoder: DecoderConfig, blocks: Sequence[BlockConfig]) -> None:
        super().__init__()
        self.config = replace(decoder, vocab=0, blocks=tuple(blocks), tied_head=True, embed_norm=False, deepstack=())
        width, eps = decoder.d_model, decoder.norm_eps
        self.norm_embedding, self.norm_hidden = norm(decoder.norm, width, eps), norm(decoder.norm, width, eps)
        self.join = Linear(2 * width, width)
        self.layers = Decoder(self.config)
        del self.layers.embedding  # the decoder's serves

    def init_state(self, batch: int = 1) -> State:
        """The empty state of `batch` rows."""
        return self.layers.init_state(batch)

    def fingerprint(self) -> str:
        """A hash of the head's shape and weights; states made afterwards carry it."""
        return self.layers.fingerprint()

    @overload
    def forward(
        self,
        hidden: Tensor,
        following: Tensor,
        state: State | None = ...,
        *,
        lengths: Sequence[int] | None = ...,
        positions: Tensor | None = ...,
        route: Route | None = ...,
        journal: Literal[False] = ...,
    ) -> tuple[Tensor, State]: ...
    @overload
    def forward(
        self,
        hidden: Tensor,
        following: Tensor,
        state: State | None = ...,
        *,
        lengths: Sequence[int] | None = ...,
        positions: Tensor | None = ...,
        route: Route | None = ...,
        journal: Literal[True],
    ) -> tuple[Tensor, Journal]: ...
    def forward(
        self,
        hidden: Tensor,
        following: Tensor,
        state: State | None = None,
        *,
        lengths: Sequence[int] | None = None,
        positions: Tensor | None = None,
        route: Route | None = None,
        journal: bool = False,
    ) -> tuple[Tensor, State | Journal]:
        """The decoder's hidden [B, T, D] and the embeddings of the tokens that follow each, `decoder.embed(ids)`
        [B, T, D] -> hidden [B, T, D], ready for `decoder.logits`, and the head's state (or a journal). Options as the
        decoder's; `positions` are those of the tokens whose hidden states these are. Errors: UsageError."""
        if hidden.shape != following.shape:
            raise UsageError(f"{list(following.shape)} embeddings do not fit hidden states {list(hidden.shape)}.")
        x = self.join(torch.cat([self.norm_embedding(following), self.norm_hidden(hidden)], -1), route)
        if journal:
            return self.layers(x, state, lengths=lengths, positions=positions, route=route, journal=True)
        return self.layers(x, state, lengths=lengths, positions=positions, route=route)
