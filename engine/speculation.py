"""Decoding: the tokens of an answer one by one, of which a draft lets the model compute several at once.

    run = [token, *guesses] in one provisional forward;  each guess that equals the token chosen next costs nothing;
    the first other token begins the next run, behind journal.commit(what was taken)

A tree of guesses goes through one forward too, each with its ancestors alone as its past; where a mixer has no form for
that, the likeliest path is what is checked.

Every token is chosen from the model's own logits with all of its own past, by the same call and the same draws whether
it was guessed or not: greedy or sampled, an answer with a draft is the plain one. Guesses that were drawn by chance are
the exception: the rejection rule (Leviathan, Kalman & Matias 2023) keeps the tokens in the model's distribution, by
other draws. Memory is committed where a run is left, at whichever token that is; without a draft a run is one token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch

from fluvial.engine.depth import Depth
from fluvial.engine.draft import Context, Proposal, Seen
from fluvial.engine.feed import Feed
from fluvial.engine.sampling import Sampler
from fluvial.models.journal import Journal, TreeJournal
from fluvial.models.state import State


class Run:
    """A token that was chosen and the first `computed` - 1 guesses behind it, in one forward. `ids` holds them and
    perhaps one guess more, which ends the answer and is never fed. `parents[i]` is the place of what ids[i] follows.
    `logits` fp32 [computed, vocab]."""

    @torch.no_grad()
    def __init__(self, before: Feed, token: int, proposal: Proposal, ends: Collection[int]) -> None:
        began, decoder, route = time.perf_counter(), before.model.decoder, before.route
        self.proposal, self.ids = proposal, [token, *proposal.tokens]
        tree = proposal.parents
        self.parents = range(-1, len(self.ids) - 1) if tree is None else [-1, *(parent + 1 for parent in tree)]
        self.computed = len(self.ids) - (len(self.ids) > 1 and self.ids[-1] in ends)
        self._x = decoder.embed(torch.tensor([self.ids[: self.computed]], device=decoder.device), route)
        self._end: State | Journal | TreeJournal
        if tree is not None:
            self._hidden, self._end = decoder.tree(self._x, self.parents[: self.computed], before.state, route=route)
        elif self.computed > 1:
            self._hidden, self._end = decoder(self._x, before.state, route=route, journal=True)
        else:  # nothing to take back
            self._hidden, self._end = decoder(self._x, before.state, route=route)
        # not the state before: a large one should not stay as long as somebody may ask for the feed after
        self.before = replace(before, state=self._end) if isinstance(self._end, State) else before
        self.logits = decoder.logits(self._hidden[0], route).float()
        self.seconds = time.perf_counter() - began

    def following(self, at: int) -> list[int]:
        """The places of the guesses that follow place `at`."""
        return [i for i in range(at + 1, len(self.ids)) if self.parents[i] == at]

    @torch.no_grad()
    def after(self, path: Sequence[int]) -> Feed:
        """The feed after the tokens at these places, which follow each other from 0 on."""
        state, logits = self._end, self.logits[path[-1]]
        if isinstance(state, Journal | TreeJournal):
            state = state.commit(path) if isinstance(state, TreeJournal) else state.commit(len(path))
            logits = logits.clone()  # a feed must not hold all rows
        draft, route, ids = self.before.draft, self.before.route, [self.ids[i] for i in path]
        if draft is not None:
            at = slice(len(path)) if isinstance(self.parents, range) else list(path)  # a view where it can be
            draft = draft.observe(Seen(ids, self._x[0, at], self._hidden[0, at], None, route))
        return self.before.behind(replace(self.before, state=state, logits=logits, draft=draft), ids)


class Decoding:
    """Goes on from a feed token by token: `choose` one, `take` it. `history` are the recent ids, for the penalty."""

    def __init__(self, feed: Feed, sampler: Sampler, depth: Depth, history: list[int], ends: Collection[int]) -> None:
        self.sampler, self.history = sampler, history
        self.forwards = self.drafted = self.accepted = 0
        self._feed, self._depth, self._ends = feed, depth, ends
        self._run: Run | None = None
        self._path, self._missed = [0], False  # places of the run that were taken; whether what came next was no guess
        self._asked, self._draft_seconds = 0, 0.0

    def choose(self) -> int:
        """The next token, by the sampler's rule."""
        run, at = self._run, self._path[-1]
        if run is None:
            assert self._feed.logits is not None
            return self.sampler.sample(self._feed.logits, self.history)
        following = run.following(at)
        if following and run.proposal.probs is not None:
            id = self.sampler.verify(run.ids[at + 1], run.proposal.probs[at], run.logits[at], self.history)
        else:
            id = self.sampler.sample(run.logits[at], self.history)
        self._missed = bool(following) and all(id != run.ids[i] for i in following)
        return id

    def take(self, id: int, room: int) -> None:
        """Goes on behind a chosen token; at most `room` will follow."""
        run = self._run
        for place in run.following(self._path[-1]) if run is not None else ():
            if run is not None and place < run.computed and run.ids[place] == id:
                self._path.append(place)
                self.accepted += 1
                self.history.append(id)
                return
        feed = self.leave()
        self.history.append(id)
        proposal = self._proposal(feed, room)
        self._run, self._path, self._missed = Run(feed, id, proposal, self._ends), [0], False
        self._feed = self._run.before
        self.forwards += 1
        self.drafted += len(proposal.tokens)

    def leave(self) -> Feed:
        """The feed after all that was taken; what is computed beyond is forgotten."""
        run = self._run
        if run is None:
            return self._feed
        began = time.perf_counter()
        self._feed, self._run = run.after(self._path), None
        if self._feed.draft is not None:
            self._learn(run, time.perf_counter() - began)
        return self._feed

    def _learn(self, run: Run, seconds: float) -> None:
        self._depth.learn(
            drafted=len(run.ids) - 1,
            accepted=len(self._path) - 1,
            missed=self._missed,
            grade=run.proposal.grade,
            forward=run.seconds + seconds,
            asked=self._asked,
            draft=self._draft_seconds,
            tree=None if run.proposal.parents is None else [place - 1 for place in self._path[1:]],
        )

    def mark(self) -> Callable[[], Feed]:
        """The feed after all that was taken, whenever it is asked for."""
        run, path, feed = self._run, tuple(self._path), self._feed
        return (lambda: feed) if run is None else lambda: run.after(path)

    def _proposal(self, feed: Feed, room: int) -> Proposal:
        """Guesses worth checking, up to one that ends the answer."""
        self._asked, self._draft_seconds = 0, 0.0
        if feed.draft is None or not (most := self._depth.plan(room)):
            return Proposal()
        began = time.perf_counter()
        proposal = feed.draft.propose(Context(self.history, self.sampler, feed.route), most)
        if proposal.parents is not None and feed.model.decoder.treeless:
            proposal = proposal.chain
        n = next((i for i, id in enumerate(proposal.tokens[:most], 1) if id in self._ends), most)
        self._asked, self._draft_seconds = len(proposal.tokens), time.perf_counter() - began
        if proposal.probs is None:  # drawn guesses are checked whatever they are, or the rule would not hold
            n = self._depth.cut(min(n, self._asked), proposal.grade, proposal.chance)
        return proposal.cut(n)
