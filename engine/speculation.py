"""Decoding: the tokens of an answer one by one, of which a draft lets the model compute several at once.

    run = [token, *guesses] in one provisional forward;  each guess that equals the token chosen next costs nothing;
    the first other token begins the next run, behind journal.commit(what was taken)

Every token is chosen from the model's own logits with all of its own past, by the same call and the same draws whether
it was guessed or not: greedy or sampled, an answer with a draft is the plain one. Guesses that were drawn by chance are
the exception: the rejection rule (Leviathan, Kalman & Matias 2023) keeps the tokens in the model's distribution, by
other draws. Memory is committed where a run is left, at whichever token that is; without a draft a run is one token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from fluvial.engine.depth import Depth
from fluvial.engine.draft import Context, Proposal, Seen
from fluvial.engine.feed import Feed
from fluvial.engine.sampling import Sampler
from fluvial.models.journal import Journal
from fluvial.models.state import State


class Run:
    """A token that was chosen and the first `computed` - 1 guesses behind it, in one forward. `ids` holds them and
    perhaps one guess more, which ends the answer and is never fed. `logits` fp32 [computed, vocab]."""

    @torch.no_grad()
    def __init__(self, before: Feed, token: int, proposal: Proposal, ends: Collection[int]) -> None:
        began, decoder, route = time.perf_counter(), before.model.decoder, before.route
        self.before, self.proposal, self.ids = before, proposal, [token, *proposal.tokens]
        self.computed = len(self.ids) - (len(self.ids) > 1 and self.ids[-1] in ends)
        self._x = decoder.embed(torch.tensor([self.ids[: self.computed]], device=decoder.device), route)
        self._end: State | Journal
        if self.computed > 1:
            self._hidden, self._end = decoder(self._x, before.state, route=route, journal=True)
        else:  # nothing to take back
            self._hidden, self._end = decoder(self._x, before.state, route=route)
        self.logits = decoder.logits(self._hidden[0], route).float()
        self.seconds = time.perf_counter() - began

    @torch.no_grad()
    def after(self, n: int) -> Feed:
        """The feed after the first n >= 1 tokens."""
        state, logits = self._end, self.logits[n - 1]
        if isinstance(state, Journal):
            state, logits = state.commit(n), logits.clone()  # a feed must not hold all rows
        draft, route = self.before.draft, self.before.route
        if draft is not None:
            draft = draft.observe(Seen(self.ids[:n], self._x[0, :n], self._hidden[0, :n], None, route))
        return replace(self.before, state=state, logits=logits, draft=draft)


class Decoding:
    """Goes on from a feed token by token: `choose` one, `take` it. `history` are the recent ids, for the penalty."""

    def __init__(self, feed: Feed, sampler: Sampler, depth: Depth, history: list[int], ends: Collection[int]) -> None:
        self.sampler, self.history = sampler, history
        self.forwards = self.drafted = self.accepted = 0
        self._feed, self._depth, self._ends = feed, depth, ends
        self._run: Run | None = None
        self._taken, self._missed = 0, False  # tokens of the run; whether the next guess was wrong
        self._asked, self._draft_seconds = 0, 0.0

    def choose(self) -> int:
        """The next token, by the sampler's rule."""
        run, at = self._run, self._taken
        if run is None:
            assert self._feed.logits is not None
            return self.sampler.sample(self._feed.logits, self.history)
        logits = run.logits[at - 1]
        if at == len(run.ids):
            return self.sampler.sample(logits, self.history)
        if run.proposal.probs is None:
            id = self.sampler.sample(logits, self.history)
        else:
            id = self.sampler.verify(run.ids[at], run.proposal.probs[at - 1], logits, self.history)
        self._missed = id != run.ids[at]
        return id

    def take(self, id: int, room: int) -> None:
        """Goes on behind a chosen token; at most `room` will follow."""
        run = self._run
        if run is not None and self._taken < run.computed and run.ids[self._taken] == id:
            self._taken += 1
            self.accepted += 1
            self.history.append(id)
            return
        feed = self.leave()
        self.history.append(id)
        proposal = self._proposal(feed, room)
        self._run, self._taken, self._missed = Run(feed, id, proposal, self._ends), 1, False
        self.forwards += 1
        self.drafted += len(proposal.tokens)

    def leave(self) -> Feed:
        """The feed after all that was taken; what is computed beyond is forgotten."""
        run = self._run
        if run is None:
            return self._feed
        began = time.perf_counter()
        self._feed, self._run = run.after(self._taken), None
        self._depth.learn(
            drafted=len(run.ids) - 1,
            accepted=self._taken - 1,
            missed=self._missed,
            grade=run.proposal.grade,
            forward=run.seconds + time.perf_counter() - began,
            asked=self._asked,
            draft=self._draft_seconds,
        )
        return self._feed

    def mark(self) -> Callable[[], Feed]:
        """The feed after all that was taken, whenever it is asked for."""
        run, taken, feed = self._run, self._taken, self._feed
        return (lambda: feed) if run is None else lambda: run.after(taken)

    def _proposal(self, feed: Feed, room: int) -> Proposal:
        """Guesses worth checking, up to one that ends the answer."""
        self._asked, self._draft_seconds = 0, 0.0
        if feed.draft is None or not (most := self._depth.plan(room)):
            return Proposal()
        began = time.perf_counter()
        proposal = feed.draft.propose(Context(self.history, self.sampler, feed.route), most)
        n = next((i for i, id in enumerate(proposal.tokens[:most], 1) if id in self._ends), most)
        self._asked, self._draft_seconds = len(proposal.tokens), time.perf_counter() - began
        if proposal.probs is None:  # drawn guesses are checked whatever they are, or the rule would not hold
            n = self._depth.cut(min(n, self._asked), proposal.grade)
        return proposal.cut(n)
