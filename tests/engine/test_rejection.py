"""The rejection rule leaves the distribution as it is: every outcome of every random choice, enumerated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fluvial.engine.draft import Context, Proposal, Seen
from fluvial.engine.feed import Feed
from fluvial.engine.sampling import Sampler, SamplingParams
from fluvial.engine.speculation import Decoding
from fluvial.models.journal import Journal
from tests.engine.scripted import Fixed

V, END, LONGEST = 3, 2, 4


class Branching(Sampler):
    """Takes the choices of `path` in turn, then the first possible ones; `weight` is the chance that it came so."""

    def __init__(self, params: SamplingParams, path: list[int]) -> None:
        super().__init__(params)
        self.path, self.at, self.weight, self.options = path, 0, 1.0, list[list[int]]()

    def _choose(self, weights: list[float]) -> int:
        possible = [i for i, weight in enumerate(weights) if weight > 0]
        if self.at == len(self.path):
            self.path.append(possible[0])
        chosen = self.path[self.at]
        self.options.append(possible)
        self.at += 1
        self.weight *= weights[chosen] / sum(weights)
        return chosen

    def draw(self, probs: Tensor) -> int:
        return self._choose(probs.double().tolist())

    def happens(self, chance: float) -> bool:
        return bool(self._choose([1 - min(chance, 1.0), min(chance, 1.0)]))


class Table(Journal):
    """A decoder whose logits are a random function of all ids so far."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        self.ids = ids

    def commit(self, n: Any) -> Any:
        return SimpleNamespace(ids=self.ids[: len(self.ids) - self.new + n])


class Tables:
    device, dtype = torch.device("cpu"), torch.float32

    def embed(self, ids: Tensor, route: Any = None) -> Tensor:
        return ids[..., None].float()

    def __call__(self, x: Tensor, state: Any, *, route: Any = None, journal: bool = False) -> Any:
        new = [int(id) for id in x[0, :, 0]]
        rows = [logits((*state.ids, *new[: i + 1]), 0) for i in range(len(new))]
        if not journal:
            return torch.stack(rows)[None], SimpleNamespace(ids=(*state.ids, *new))
        table = Table((*state.ids, *new))
        table.new = len(new)
        return torch.stack(rows)[None], table

    def logits(self, hidden: Tensor, route: Any = None) -> Tensor:
        return hidden


def logits(ids: Sequence[int], salt: int) -> Tensor:
    seed = salt
    for id in ids:
        seed = seed * 5 + id + 1
    return 1.3 * torch.randn(V, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Drawn:
    """Draws its guesses from a distribution of its own."""

    seen: tuple[int, ...] = (0,)
    name: str = "drawn"

    def observe(self, seen: Seen) -> Drawn:
        return Drawn((*self.seen, *(seen.ids or ())))

    def propose(self, context: Context, k: int) -> Proposal:
        ids, probs = [*self.seen, context.history[-1]], []
        while len(probs) < k and (not probs or ids[-1] != END):
            probs.append(context.sampler.probs(logits(ids, 77), ids))
            ids.append(context.sampler.draw(probs[-1]))
        return Proposal(ids[len(self.seen) + 1 :], torch.stack(probs))


def answered(sampler: Sampler, depth: int, draft: Any) -> tuple[int, ...]:
    model: Any = SimpleNamespace(decoder=Tables())
    state: Any = SimpleNamespace(ids=(0,))
    decoding = Decoding(Feed(model, state, logits((0,), 0), None, draft), sampler, Fixed(depth), [0], [END])
    said: list[int] = []
    while len(said) < LONGEST:
        said.append(decoding.choose())
        if said[-1] == END:
            break
        decoding.take(said[-1], LONGEST - len(said))
    fed = said[:-1] if said[-1] == END else said
    assert decoding.leave().state.ids == (0, *fed)
    return tuple(said)


def distribution(params: SamplingParams, depth: int, draft: Any) -> dict[tuple[int, ...], float]:
    """The chance of every answer: each path through the choices, weighted."""
    found: dict[tuple[int, ...], float] = defaultdict(float)
    path: list[int] = []
    while True:
        sampler = Branching(params, path)
        found[answered(sampler, depth, draft)] += sampler.weight
        while path and path[-1] == sampler.options[len(path) - 1][-1]:
            path.pop()
        if not path:
            return found
        options = sampler.options[len(path) - 1]
        path[-1] = options[options.index(path[-1]) + 1]


PARAMS = {
    "plain": SamplingParams(temperature=1.0),
    "hot, penalized": SamplingParams(temperature=1.7, repetition_penalty=1.6, repetition_window=2),
    "cut": SamplingParams(temperature=0.8, top_k=2),
    "cold": SamplingParams(temperature=0.2, min_p=0.1),
}


@pytest.mark.parametrize("params", PARAMS.values(), ids=list(PARAMS))
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_every_answer_is_as_likely_as_without_a_draft(params: SamplingParams, depth: int) -> None:
    plain, drafted = distribution(params, 0, None), distribution(params, depth, Drawn())
    assert sum(plain.values()) == pytest.approx(1, abs=1e-9)
    assert plain.keys() == {answer for answer, chance in drafted.items() if chance > 1e-7}
    for answer, chance in plain.items():
        assert drafted[answer] == pytest.approx(chance, abs=1e-6)


def test_a_draft_like_the_model_is_always_right() -> None:
    sampler = Sampler(SamplingParams(temperature=1.0, seed=1))
    for seed in range(50):
        row = logits((seed,), 0)
        p = sampler.probs(row)
        guess = sampler.draw(p)
        assert sampler.verify(guess, p, row) == guess
