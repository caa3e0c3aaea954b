"""The depth controller in simulated cost: it never loses more than it may, and it finds what pays."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product

import pytest

from fluvial.engine.costs import DEPTHS, MOST, Costs, measured
from fluvial.engine.depth import Depth
from fluvial.engine.depths import Depths
from tests.models import zoo

TOKENS = 1500
Cost = Callable[[int], float]


def answered(
    depth: Depth,
    chance: Callable[[int], float],
    draft: float,
    forward: Cost,
    draw: random.Random,
    *,
    found: float = 1.0,
    tokens: int = TOKENS,
) -> tuple[float, int]:
    """Cost and forwards of an answer. `chance(n)` that a guess behind token n is right; each costs `draft`; a forward
    over T tokens costs forward(T), a plain one 1; the draft has an idea in `found` of the rounds."""
    cost, said, forwards = 0.0, 0, 0
    while said < tokens:
        asked = depth.plan(tokens - said - 1)
        seconds = draft * asked
        asked = asked if draw.random() < found else 0
        k, accepted = depth.cut(asked, 0), 0
        while accepted < k and draw.random() < chance(said + accepted):
            accepted += 1
        depth.learn(
            drafted=k,
            accepted=accepted,
            missed=accepted < k,
            grade=0,
            forward=forward(k + 1),
            asked=asked,
            draft=seconds,
        )
        cost, said, forwards = cost + seconds + forward(k + 1), said + accepted + 1, forwards + 1
    return cost, forwards


def known(forward: Cost) -> Costs:
    """As `measured` leaves them."""
    costs = Costs()
    for tokens in (1, *(depth + 1 for depth in DEPTHS[:-1])):
        costs.note(tokens, forward(tokens))
    return costs


def simulated(
    chance: Callable[[int], float], draft: float, forward: Cost, *, found: float = 1.0, tokens: int = TOKENS
) -> tuple[float, float]:
    """How many times as fast as plain decoding, and tokens per forward, by a controller that knows nothing yet."""
    cost, forwards = answered(Depth(), chance, draft, forward, random.Random(1), found=found, tokens=tokens)
    return tokens / cost, tokens / forwards


def best(chance: float, draft: float, forward: Cost) -> float:
    """What the best fixed depth gives."""
    return max(sum(chance**i for i in range(k + 1)) / (k * draft + forward(k + 1)) for k in range(MOST + 1))


def line(slope: float) -> Cost:
    return lambda tokens: 1 + slope * (tokens - 1)


def kernels(tokens: int) -> float:
    """As measured on two cores: a second row costs half a plain forward, eight of them almost five."""
    return {1: 1.0, 2: 1.5, 3: 1.9}.get(tokens, 2.4 + 0.6 * (tokens - 4))


GRID = list(product([0.001, 0.05, 0.3], [line(0.0), line(0.05), line(0.3), line(1.0), kernels]))


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("chance", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_answers_of_any_length_never_lose(chance: float, warm: bool) -> None:
    """Ten answers in a row, and the first one alone where it has the tokens to pay for a trial."""
    for (draft, forward), (length, answers) in product(GRID, [(16, 10), (64, 10), (256, 5), (TOKENS, 1)]):
        depth, draw = Depth(known(forward) if warm else None), random.Random(1)
        costs = [answered(depth, lambda _: chance, draft, forward, draw, tokens=length)[0] for _ in range(answers)]
        assert answers * length / sum(costs) >= 0.98, (draft, forward(2), length)
        assert length < 64 or length / costs[0] >= 0.98, (draft, forward(2), length)


@pytest.mark.parametrize("chance", [0.0, 0.2, 0.5, 0.9])
def test_ten_thousand_tokens_never_lose(chance: float) -> None:
    for draft, forward in product([0.001, 1.0], [line(0.05), line(1.0)]):
        assert simulated(lambda _: chance, draft, forward, tokens=10_000)[0] >= 0.98


@pytest.mark.parametrize("chance", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
def test_it_comes_near_the_best_depth(chance: float) -> None:
    for draft, forward in GRID:
        faster, _ = simulated(lambda _: chance, draft, forward)
        found = best(chance, draft, forward)
        assert faster >= 0.83 * found - (0.15 if chance >= 0.9 else 0.02), (draft, forward(2))


def test_what_one_answer_taught_helps_the_next() -> None:
    """Copying: the second short answer goes at full depth from its first forward on."""
    depth, draw = Depth(known(kernels)), random.Random(1)
    first, second = (answered(depth, lambda _: 1.0, 0.001, kernels, draw, tokens=64) for _ in range(2))
    assert second[1] < first[1] and second[0] < first[0] < 64 / 1.2


def test_the_controllers_of_a_model_are_shared() -> None:
    depths = Depths()
    assert depths.of("ngram", None) is depths.of("ngram", {}) is not depths.of("mtp", None)
    assert depths.of("ngram", None).forward is depths.of("mtp", None).forward is not depths.of("mtp", {"a": 1}).forward
    assert depths.of("mtp", {"a": 1.0}) is depths.of("mtp", {"a": 0.5})  # weights change neither costs nor much else


@pytest.mark.parametrize("name", ["gated_delta", "transformer"])
def test_costs_are_measured_for_the_shorter_checks(name: str) -> None:
    costs = measured(zoo.decoder(name))
    assert costs and all(costs(depth + 1) > 0 for depth in DEPTHS)


@pytest.mark.parametrize(("draft", "slope"), [(0.001, 0.05), (0.05, 0.05), (0.05, 0.3), (0.3, 0.1)])
def test_it_follows_what_changes(draft: float, slope: float) -> None:
    """Half of the text cannot be guessed, half of it can."""
    faster, _ = simulated(lambda n: (n // 500) % 2 * 0.95, draft, line(slope), tokens=3000)
    assert faster >= 1.1


@pytest.mark.parametrize("found", [0.02, 0.3])
def test_asking_in_vain_costs_little(found: float) -> None:
    for chance, draft in product([0.0, 0.2, 0.9], [0.002, 0.01, 0.1]):
        assert simulated(lambda _, c=chance: c, draft, line(0.2), found=found)[0] >= 0.98


def test_steps_in_the_cost_are_found() -> None:
    """Kernels work on blocks: four tokens for the price of one, the fifth costs as much again."""
    faster, _ = simulated(lambda _: 0.9, 0.01, lambda tokens: float(-(-tokens // 4)))
    assert faster >= 0.85 * sum(0.9**i for i in range(4)) / 1.03


@pytest.mark.parametrize("chance", [0.97, 0.99, 1.0])
def test_copying_takes_a_seventh_of_the_forwards(chance: float) -> None:
    assert simulated(lambda _: chance, 0.001, line(0.05))[1] >= 7


def test_grades_are_counted_apart() -> None:
    depth = Depth()
    depth.learn(drafted=0, accepted=0, missed=False, grade=0, forward=1.0)
    for _ in range(40):
        for grade, right in ((1, 0), (2, 8)):
            k = depth.cut(8, grade)
            accepted = min(right, k)
            cost = 1 + k / 4
            depth.learn(drafted=k, accepted=accepted, missed=accepted < k, grade=grade, forward=cost)
    assert depth.cut(8, 2) >= 6
    assert sum(depth.cut(8, 1) for _ in range(20)) <= 2


def test_an_empty_account_stops_drafting() -> None:
    depth = Depth()
    depth.learn(drafted=0, accepted=0, missed=False, grade=0, forward=1.0)
    assert depth.plan(9) == 1 and depth.plan(0) == 0  # one guess first, to learn what it costs
    depth.account = 0.0
    assert depth.plan(9) == 0
    depth.account = 0.35
    assert depth.cut(8, 0) == 1  # what it may lose decides


def test_costs_between_and_beyond_what_was_measured() -> None:
    costs = Costs()
    costs.note(5, 3.0)
    assert not costs
    costs.note(1, 1.0)
    costs.note(5, 3.0)
    assert bool(costs) and costs(1) == 1.0 and costs(3) == 1.5 and costs(5) == 3.0 and costs(7) == 4.0
    costs.note(5, 300.0)  # the machine did something else
    assert costs(5) <= 3.3
    for _ in range(60):
        costs.note(5, 5.0)
    assert costs(5) == pytest.approx(5.0, rel=0.01)


def test_a_slower_machine_changes_no_ratio() -> None:
    costs = known(kernels)
    for _ in range(80):
        costs.note(1, 3.0)
    assert costs(4) / costs(1) == pytest.approx(kernels(4)) and costs(1) == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize("slope", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("first", [0.1, 0.3, 0.6, 0.9])
def test_trees_are_as_large_as_pays(first: float, slope: float) -> None:
    """Guess 0 is right with chance `first`, guess 1 (its sibling) where it is not with 0.6, guess 2 and on never."""
    draw, depth, cost, said = random.Random(2), Depth(), 0.0, 0
    second = 0.6 * (1 - first)
    while said < TOKENS:
        asked = depth.plan(TOKENS - said - 1)
        k = depth.cut(asked, 0)
        right = [0] if draw.random() < first else [1] if draw.random() < 0.6 else []
        right = [rank for rank in right if rank < k]
        forward = 1 + slope * k
        missed, drafting = k > 0 and not right, 0.001 * asked
        depth.learn(
            drafted=k,
            accepted=len(right),
            missed=missed,
            grade=0,
            forward=forward,
            asked=asked,
            draft=drafting,
            tree=right,
        )
        cost, said = cost + forward + drafting, said + len(right) + 1
    best = max(1.0, (1 + first) / (1 + slope), (1 + first + second) / (1 + 2 * slope))
    assert TOKENS / cost >= max(0.98, 0.85 * best)
