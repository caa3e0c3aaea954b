"""Sampling: each filter as Transformers defines it, the exact distribution, and draws that go on after a restore."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fluvial.adapters.errors import FluvialError, IntegrityError, UsageError
from fluvial.engine import sampling
from fluvial.engine.sampling import Sampler, SamplingParams

LOGITS = torch.tensor([0.5, 2.0, -1.0, 1.0, 3.0, -2.0])


def sampler(**options: float) -> Sampler:
    return Sampler(SamplingParams(**options))  # type: ignore[arg-type]


def reference(logits: list[float], params: SamplingParams, history: list[int]) -> list[float]:
    """The rules one token at a time, in fp64."""
    logits = list(logits)
    for id in set(history[-params.repetition_window :] if params.repetition_window else []):
        logits[id] = (
            logits[id] * params.repetition_penalty if logits[id] < 0 else logits[id] / params.repetition_penalty
        )
    if params.temperature == 0:
        return [float(id == logits.index(max(logits))) for id in range(len(logits))]
    kept = {id: value / params.temperature for id, value in enumerate(logits) if value > -math.inf}

    def probs() -> dict[int, float]:
        weights = {id: math.exp(value - max(kept.values())) for id, value in kept.items()}
        return {id: weight / sum(weights.values()) for id, weight in weights.items()}

    if params.top_k:
        least = sorted(kept.values(), reverse=True)[min(params.top_k, len(kept)) - 1]
        kept = {id: value for id, value in kept.items() if value >= least}
    if params.top_p < 1:
        share, mass, nucleus = probs(), 0.0, []
        for id in sorted(kept, key=lambda id: (-kept[id], id)):
            if mass < params.top_p:
                nucleus.append(id)
            mass += share[id]
        kept = {id: kept[id] for id in nucleus}
    if params.min_p:
        share = probs()
        kept = {id: kept[id] for id in kept if share[id] >= params.min_p * max(share.values())}
    return [probs().get(id, 0.0) for id in range(len(logits))]


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.31, 0.77, 1.0, 1.9]),
    top_k=st.integers(0, 9),
    top_p=st.sampled_from([0.011, 0.37, 0.73, 0.9113, 1.0]),
    min_p=st.sampled_from([0.0, 0.0137, 0.213, 1.0]),
    repetition_penalty=st.sampled_from([0.7, 1.0, 1.3]),
    repetition_window=st.integers(0, 4),
)


@settings(max_examples=80)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 12),
    params=PARAMS,
    history=st.lists(st.integers(0, 11), max_size=6),
    banned=st.sets(st.integers(0, 11)),
)
def test_probs_equal_the_rules_one_by_one(
    seed: int, size: int, params: SamplingParams, history: list[int], banned: set[int]
) -> None:
    logits = 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))
    for id in banned:
        if id < size - 1:
            logits[id] = -math.inf
    history = [id % size for id in history]
    found = Sampler(params).probs(logits, history)
    torch.testing.assert_close(found.double(), torch.tensor(reference(logits.tolist(), params, history)).double())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sharp=st.sampled_from([0.1, 1.0, 4.0]),
    ties=st.booleans(),
    few=st.integers(1, 9),
    params=PARAMS.filter(lambda params: not params.greedy),
)
def test_a_vocabulary_is_looked_at_no_further_than_needed(
    seed: int, sharp: float, ties: bool, few: int, params: SamplingParams
) -> None:
    """As the rules, wherever the first look ends; and a draw is one of what is left."""
    logits = sharp * torch.randn(293, generator=torch.Generator().manual_seed(seed))
    if ties:
        logits = logits.round()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TIES", "FIRST", "MOST"):
            patch.setattr(sampling, name, few if name != "MOST" else 20 * few)
        made = Sampler(params)
        found = made.probs(logits)
        torch.testing.assert_close(found.double(), torch.tensor(reference(logits.tolist(), params, [])).double())
        before = made.state()
        token = made.sample(logits)
        made.load_state(before)
        assert made.draw(found) == token


def test_each_filter_by_hand() -> None:
    def kept(**options: float) -> list[int]:
        return sampler(temperature=1.0, **options).probs(LOGITS).nonzero().flatten().tolist()

    assert kept() == [0, 1, 2, 3, 4, 5]
    assert kept(top_k=2) == [1, 4]
    assert kept(top_p=0.7) == [1, 4] and kept(top_p=0.6) == [4]  # the likeliest has 0.62
    assert kept(min_p=0.3) == [1, 4] and kept(min_p=1.0) == [4]
    ties = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert sampler(temperature=1.0, top_k=2).probs(ties).count_nonzero() == 3  # ties with the k-th stay
    assert sampler(temperature=1.0, top_p=0.5).probs(ties).count_nonzero() == 2


def test_the_penalty_works_on_both_signs_once_and_in_its_window() -> None:
    made = sampler(temperature=1.0, repetition_penalty=2.0, repetition_window=2)
    expected = torch.tensor([0.5, 1.0, -2.0, 1.0, 3.0, -2.0]).softmax(0)
    torch.testing.assert_close(made.probs(LOGITS, [4, 1, 2]), expected)
    torch.testing.assert_close(made.probs(LOGITS, [3, 2, 1, 1, 1]), torch.tensor([0.5, 1, -1, 1, 3, -2]).softmax(0))
    assert sampler(repetition_penalty=9.0).sample(LOGITS, [4]) == 1
    assert LOGITS[1] == 2.0  # the caller's logits are not touched


def test_greedy_is_one_hot_and_draws_nothing() -> None:
    made = sampler(temperature=0.0, top_k=3, seed=1)
    before = made.state()
    assert made.probs(LOGITS).tolist() == [0, 0, 0, 0, 1, 0] and made.sample(LOGITS) == 4
    assert torch.equal(before, made.state())
    assert Sampler().probs(torch.tensor([1.0, 1.0])).tolist() == [1, 0]


def test_rows_are_each_their_own() -> None:
    made = sampler(temperature=0.8, top_k=4, top_p=0.95, repetition_penalty=1.5)
    rows = torch.stack([LOGITS, -LOGITS, LOGITS.flip(0)])
    histories = [[1], [2, 5], []]
    together = made.probs(rows, histories)
    for row, probs, history in zip(rows, together, histories, strict=True):
        torch.testing.assert_close(probs, made.probs(row, history))
    with pytest.raises(UsageError, match="one history each"):
        made.probs(rows, [1, 2, 3])
    with pytest.raises(UsageError, match="one history each"):
        made.probs(rows, [[1]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_mathematics_is_fp32(dtype: torch.dtype) -> None:
    probs = sampler(temperature=0.7).probs(LOGITS.to(dtype))
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs, sampler(temperature=0.7).probs(LOGITS))


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    assert sampler(temperature=1e-30).probs(LOGITS * 1000).tolist() == [0, 0, 0, 0, 1, 0]


def test_draws_follow_the_distribution() -> None:
    made = sampler(temperature=1.0, top_k=4, seed=3)
    probs = made.probs(LOGITS)
    counts = torch.zeros(6)
    for _ in range(2000):
        counts[made.sample(LOGITS)] += 1
    expected = probs * 2000
    assert counts[probs == 0].sum() == 0
    chi_square = float(((counts - expected) ** 2 / expected)[probs > 0].sum())
    assert chi_square < 16.3  # 3 degrees of freedom, one in a thousand


def test_a_restored_sampler_goes_on_with_the_same_draws() -> None:
    flat = torch.zeros(1000)
    made, other = sampler(temperature=1.0, seed=11), sampler(temperature=1.0)
    again = sampler(temperature=1.0, seed=11)
    assert [made.sample(flat) for _ in range(5)] == [again.sample(flat) for _ in range(5)]
    saved = made.state().clone()
    expected = [made.sample(flat) for _ in range(20)]
    assert [other.sample(flat) for _ in range(20)] != expected
    other.load_state(saved)
    assert [other.sample(flat) for _ in range(20)] == expected
    torch.manual_seed(0)
    other.load_state(saved)
    torch.rand(3)  # the global generator is another
    assert [other.sample(flat) for _ in range(20)] == expected


@pytest.mark.parametrize(
    "state", [torch.zeros(3, dtype=torch.uint8), torch.zeros(5056), torch.zeros(0, dtype=torch.uint8)]
)
def test_a_wrong_state_is_refused(state: Tensor) -> None:
    with pytest.raises(IntegrityError, match="sampler state"):
        sampler().load_state(state)


def test_residual_weights_are_drawn_without_their_zeros() -> None:
    made = sampler(temperature=1.0, seed=5)
    drawn = {made.draw(torch.tensor([0.0, 1e-9, 0.0, 3e-9, 0.0])) for _ in range(100)}
    assert drawn == {1, 3}
    made.uniform = lambda: 1 - 2**-53  # type: ignore[method-assign]
    assert made.draw(torch.tensor([0.3, 0.7, 0.0])) == 1
    for weights in ([0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]):
        with pytest.raises(FluvialError, match="no mass"):
            made.draw(torch.tensor(weights))


def test_padding_of_the_vocabulary_is_never_chosen() -> None:
    made = Sampler(SamplingParams(temperature=1.0), vocab_size=4)
    assert made.probs(LOGITS)[4:].tolist() == [0, 0] and Sampler(vocab_size=4).sample(LOGITS) == 1


@pytest.mark.parametrize(
    ("logits", "kind"),
    [
        ([1.0, math.nan], "NaN"),
        ([-math.inf, -math.inf], "only -inf"),
        ([math.inf, 0.0], r"\+inf"),
        ([[0.0], [math.nan]], "NaN"),
    ],
)
def test_logits_that_are_no_numbers(logits: list[float], kind: str) -> None:
    for options in ({}, {"temperature": 1.0, "top_k": 1, "top_p": 0.5, "min_p": 0.1}):
        with pytest.raises(FluvialError, match=kind):
            sampler(**options).probs(torch.tensor(logits))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="shape"):
        sampler().probs(torch.zeros(1, 2, 3))
    with pytest.raises(UsageError, match="shape"):
        sampler().sample(torch.zeros(1, 3))
    for id in (-1, 6):
        with pytest.raises(UsageError, match="outside the vocabulary"):
            sampler(repetition_penalty=2.0).probs(LOGITS, [id])


BAD = [("temperature", -0.1), ("temperature", math.inf), ("temperature", math.nan), ("temperature", "hot")]
BAD += [("top_k", -1), ("top_k", 1.5), ("top_k", True), ("top_p", 0.0), ("top_p", 1.1), ("min_p", -0.1), ("min_p", 1.1)]
BAD += [("repetition_penalty", 0.0), ("repetition_window", -1), ("seed", -1), ("seed", 2**63), ("seed", 0.5)]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_parameters_out_of_range(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=name):
        sampler(**{name: value})
