"""The head for multi-token prediction that a checkpoint brings along (Qwen3.5, Qwen3-Next), with a memory of its own.

Row t of its memory is the pair (hidden state of token t, token t + 1), so it stands one token behind the decoder's.
Pairs are read when a guess is asked for, together with the newest one. A chain feeds on its own hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.lora import Route
from fluvial.engine.draft import Context, Packed, Proposal, Seen
from fluvial.engine.drafts._words import Words
from fluvial.engine.model import Model
from fluvial.models.mtp import Mtp
from fluvial.models.state import State

CHUNK = 512  # pairs: so many are read at once
Pairs = tuple[Tensor, Tensor]  # hidden [n, D] of some tokens, embeddings [n, D] of those that follow them


class MtpDraft:
    """`state` of the head, which has yet to read `pairs`: when it does, nothing changes that anyone could see. `last`
    [D]: the hidden state of the newest token, which no token follows yet; `place` int64 [3, 1, 1]: where it rotates, if
    it is a medium's."""

    name = "mtp"

    def __init__(
        self,
        model: Model,
        head: Mtp,
        state: State,
        words: Words,
        last: Tensor | None = None,
        place: Tensor | None = None,
        pairs: Sequence[Pairs] = (),
    ) -> None:
        self._model, self._head, self._state, self._words = model, head, state, words
        self._last, self._place, self._pairs = last, place, list(pairs)

    @torch.no_grad()
    def observe(self, seen: Seen) -> MtpDraft:
        words = self._words if seen.ids is None else self._words.seen(seen.ids)
        if seen.x is None or seen.hidden is None:  # tokens whose hidden states are gone: begin behind them
            return MtpDraft(self._model, self._head, self._head.init_state(), words)
        hidden, following = seen.hidden, seen.x[:, : seen.hidden.shape[1]]
        if self._last is None:
            following = following[1:]
        else:
            hidden = torch.cat([self._last[None], hidden])
        pairs, last = (hidden[:-1], following), hidden[-1].clone()  # not a view: it would hold all rows
        if seen.positions is None and self._place is None:
            after = MtpDraft(self._model, self._head, self._state, words, last, None, [*self._pairs, pairs])
            if sum(len(h) for h, _ in after._pairs) >= CHUNK:
                after._read(seen.route)
            return after
        self._read(seen.route)
        places = self._places(seen)
        state = self._state if not len(following) else self._forward(pairs, places[..., :-1], seen.route)[1]
        place = None if seen.positions is None else places[..., -1:]
        return MtpDraft(self._model, self._head, state, words, last, place)

    @torch.no_grad()
    def propose(self, context: Context, k: int) -> Proposal:
        if self._last is None:
            return Proposal()
        sampler, history = context.sampler, list(context.history)
        probs: list[Tensor] = []
        for hidden in self._chain(history, context.route):
            logits = self._words.logits(self._model.decoder, hidden, context.route)
            if sampler.params.greedy:
                history.append(sampler.sample(logits, history))
            else:
                probs.append(sampler.probs(logits, history))
                history.append(sampler.draw(probs[-1]))
            guesses = history[len(context.history) :]
            if len(guesses) == k or guesses[-1] in self._model.tokenizer.eos_ids:
                break
        return Proposal(guesses, torch.stack(probs) if probs else None)

    def pack(self) -> Packed:
        tensors, about = self._state.pack()
        tensors = {f"state.{name}": tensor for name, tensor in tensors.items()}
        loose = {"last": self._last, "place": self._place} | (
            dict(zip(("hidden", "following"), map(torch.cat, zip(*self._pairs, strict=True)), strict=True))
            if self._pairs
            else {}
        )
        return tensors | {name: t for name, t in loose.items() if t is not None}, about | self._words.pack()

    def unpack(self, packed: Packed) -> MtpDraft:
        tensors, about = dict(packed[0]), packed[1]
        last, place = tensors.pop("last", None), tensors.pop("place", None)
        pairs = [(tensors.pop("hidden"), tensors.pop("following"))] if "hidden" in tensors else []
        own = {name.removeprefix("state."): tensor for name, tensor in tensors.items()}
        state = State.unpack(own, about, str(self._state.model))
        return MtpDraft(self._model, self._head, state, Words.unpack(about), last, place, pairs)

    def _chain(self, history: list[int], route: Route | None) -> Iterator[Tensor]:
        """The head's hidden state [D] behind `history`, again and again as it grows."""
        self._read(route)
        assert self._last is not None
        hidden, state = self._forward((self._last[None], self._embedded(history, route)), self._place, route)
        while True:
            yield hidden[-1]
            hidden, state = self._forward((hidden[-1:], self._embedded(history, route)), None, route, state)

    def _embedded(self, history: Sequence[int], route: Route | None) -> Tensor:
        decoder = self._model.decoder
        return decoder.embed(torch.tensor([history[-1:]], device=decoder.device), route)[0]

    def _read(self, route: Route | None) -> None:
        if not self._pairs:
            return
        hidden, following = (torch.cat(rows) for rows in zip(*self._pairs, strict=True))
        for h, e in zip(hidden.split(CHUNK), following.split(CHUNK), strict=True):
            if len(h):
                self._state = self._forward((h, e), None, route)[1]
        self._pairs = []

    def _forward(
        self, pairs: Pairs, places: Tensor | None, route: Route | None, state: State | None = None
    ) -> tuple[Tensor, State]:
        hidden, following = (rows[None] for rows in pairs)
        state = self._state if state is None else state
        hidden, state = self._head(hidden, following, state, positions=places, route=route)
        return hidden[0], state

    def _places(self, seen: Seen) -> Tensor:
        """Where the newest token so far, if any, and what was seen now rotate: int64 [3, 1, n]."""
        assert seen.hidden is not None
        at, places = self._state.rotary[0], []
        if self._last is not None:
            places.append(torch.full((3, 1, 1), at, device=seen.hidden.device) if self._place is None else self._place)
            at = max(at, int(places[0].max()) + 1)
        text = torch.arange(at, at + len(seen.hidden), device=seen.hidden.device).expand(3, 1, -1)
        return torch.cat([*places, text if seen.positions is None else seen.positions], -1)


def start(model: Model) -> MtpDraft:
    """Errors: UnsupportedError for a checkpoint without such a head."""
    head = model.draft_head
    if head is None:
        raise UnsupportedError(
            f"{model.name} has no head for multi-token prediction.",
            "Qwen3.5 and Qwen3-Next checkpoints bring one, unless whoever saved them left it out.",
            "Draft with 'ngram', or with a smaller model.",
        )
    return MtpDraft(model, head, head.init_state(), Words())
