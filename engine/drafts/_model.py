"""A smaller model with the same vocabulary as the draft. It has a state of its own.

It reads what it has missed together with the token that was chosen last, so k guesses take k of its forwards whatever
was accepted before. It reads words only: what a picture shows it cannot know.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.engine.draft import Context, Packed, Proposal, Seen
from fluvial.engine.model import Model, load_model
from fluvial.engine.tokenizer import TextTokenizer
from fluvial.models.state import State

CHUNK = 512  # missed tokens: so many are read at once


class ModelDraft:
    """`state` of the small model, which has yet to read the ids `missed`: when it does, nothing changes that anyone
    could see."""

    def __init__(self, model: Model, state: State, missed: Sequence[int] = ()) -> None:
        self.name = model.name
        self._model, self._state, self._missed = model, state, list(missed)

    @torch.no_grad()
    def observe(self, seen: Seen) -> ModelDraft:
        after = ModelDraft(self._model, self._state, [*self._missed, *(seen.ids or ())])
        while len(after._missed) >= CHUNK:
            chunk, after._missed = after._missed[:CHUNK], after._missed[CHUNK:]
            after._state = self._model.decoder(self._embedded(chunk), after._state)[1]
        return after

    @torch.no_grad()
    def propose(self, context: Context, k: int) -> Proposal:
        model, sampler, history = self._model, context.sampler, list(context.history)
        probs: list[Tensor] = []
        for logits in self._logits(history):
            if sampler.params.greedy:
                history.append(sampler.sample(logits, history))
            else:
                probs.append(sampler.probs(logits, history))
                history.append(sampler.draw(probs[-1]))
            guesses = history[len(context.history) :]
            if len(guesses) == k or guesses[-1] in model.tokenizer.eos_ids:
                break
        return Proposal(guesses, torch.stack(probs) if probs else None)

    def pack(self) -> Packed:
        tensors, about = self._state.pack()
        return tensors, about | {"missed": json.dumps(self._missed)}

    def unpack(self, packed: Packed) -> ModelDraft:
        tensors, about = packed
        return ModelDraft(
            self._model, State.unpack(tensors, about, self._model.decoder.fingerprint()), json.loads(about["missed"])
        )

    def _logits(self, history: list[int]) -> Iterator[Tensor]:
        """Logits [vocab] for what follows `history`, again and again as it grows."""
        decoder, vocab = self._model.decoder, self._model.tokenizer.vocab_size
        missed = [*self._missed, history[-1]]
        hidden, journal = decoder(self._embedded(missed), self._state, journal=True)
        state = journal.commit(len(missed))
        if self._missed:
            self._state, self._missed = journal.commit(len(missed) - 1), []
        while True:
            yield decoder.logits(hidden[0, -1])[:vocab]
            hidden, state = decoder(self._embedded(history[-1:]), state)

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        decoder = self._model.decoder
        return decoder.embed(torch.tensor([ids], device=decoder.device))


def start(model: Model, name: str, *, offline: bool = False) -> ModelDraft:
    """Loads the small model. Errors: those of `load_model`; UnsupportedError where its tokens are others."""
    return between(model, load_model(name, offline=offline))


def between(model: Model, small: Model) -> ModelDraft:
    """A loaded one as the draft. Errors: UnsupportedError where its tokens are others."""
    if (difference := _difference(model.tokenizer, small.tokenizer)) is not None:
        raise UnsupportedError(
            f"{small.name} cannot draft for {model.name}.",
            f"Its tokens are others: {difference}.",
            "Take a smaller model of the same family, or the draft 'ngram'.",
        )
    return ModelDraft(small, small.decoder.init_state())


def _difference(a: TextTokenizer, b: TextTokenizer) -> str | None:
    """The first thing in which two vocabularies differ."""
    if a.vocab_size != b.vocab_size:
        return f"{b.vocab_size} instead of {a.vocab_size}"
    if a.eos_ids != b.eos_ids:
        return f"an answer ends with {sorted(b.eos_ids)} instead of {sorted(a.eos_ids)}"
    return next((f"token {id}" for id in range(a.vocab_size) if _bytes(a, id) != _bytes(b, id)), None)


def _bytes(tokenizer: TextTokenizer, id: int) -> bytes | None:
    try:
        return tokenizer.token_bytes(id, skip_special=False)
    except UsageError:  # a gap in the vocabulary
        return None
