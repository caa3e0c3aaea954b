"""Speculation: whatever a draft guesses, tokens, draws and memory are those of plain decoding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.engine.draft import Context, Proposal, Seen
from fluvial.engine.drafts import ngram
from fluvial.engine.sampling import Sampler
from tests.engine.scripted import Scripted, decoding, feed_of, said
from tests.models import zoo

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
TOKENS = 14
SAMPLED = {"temperature": 1.5, "seed": 7, "repetition_penalty": 1.4, "repetition_window": 5}

each_decoder = pytest.mark.parametrize("name", zoo.NAMES)


@each_decoder
@settings(max_examples=5, deadline=None)
@given(script=st.lists(st.booleans(), max_size=9), depth=st.integers(0, 6), drawn=st.booleans())
def test_tokens_and_memory_are_those_of_plain_decoding(name: str, script, depth: int, drawn: bool) -> None:
    sampling = SAMPLED if drawn else {"repetition_penalty": 1.4, "seed": 7}
    plain = decoding(feed_of(name, PROMPT), 0, PROMPT, **sampling)
    answer = said(plain, TOKENS)
    draft = Scripted(answer, len(PROMPT), script)
    ahead = decoding(feed_of(name, PROMPT, draft), depth, PROMPT, **sampling)
    assert said(ahead, TOKENS) == answer
    assert torch.equal(ahead.sampler.state(), plain.sampler.state())  # the same draws, none wasted
    expected = feed_of(name, [*PROMPT, *answer])
    found = ahead.leave()
    assert zoo.distance(found.state, expected.state) <= 1e-9
    torch.testing.assert_close(found.logits, expected.logits)
    assert found.draft.seen == (*PROMPT, *answer)
    right = script and all(script)
    assert ahead.forwards == (-(-TOKENS // (depth + 1)) if right else ahead.forwards) <= TOKENS
    assert ahead.forwards + ahead.accepted == TOKENS


@each_decoder
@settings(max_examples=4, deadline=None)
@given(script=st.lists(st.booleans(), min_size=1, max_size=9), stop=st.integers(0, TOKENS - 1))
def test_memory_stands_at_the_token_where_one_stops(name: str, script, stop: int) -> None:
    answer = said(decoding(feed_of(name, PROMPT), 0), TOKENS)
    ahead = decoding(feed_of(name, PROMPT, Scripted(answer, len(PROMPT), script)), 5)
    said(ahead, stop)
    mark = ahead.mark()
    ahead.choose()  # a choice alone changes nothing
    expected = feed_of(name, [*PROMPT, *answer[:stop]])
    assert zoo.distance(ahead.leave().state, expected.state) <= 1e-9
    said(ahead, TOKENS - stop)
    assert zoo.distance(mark().state, expected.state) <= 1e-9  # and can be gone back to
    assert zoo.distance(ahead.leave().state, feed_of(name, [*PROMPT, *answer]).state) <= 1e-9


def test_an_end_that_was_guessed_is_not_fed() -> None:
    answer = said(decoding(feed_of("gated_delta", PROMPT), 0), TOKENS)
    end = next(i for i, id in enumerate(answer) if i > 2 and id not in answer[:i])
    draft = Scripted(answer, len(PROMPT), [True])
    ahead = decoding(feed_of("gated_delta", PROMPT, draft), 16, ends=[answer[end]])
    assert said(ahead, end, room=9) == answer[:end]
    assert ahead.choose() == answer[end] and ahead.forwards == 1
    assert ahead._run.computed == end and ahead.drafted == end
    assert zoo.distance(ahead.leave().state, feed_of("gated_delta", [*PROMPT, *answer[:end]]).state) <= 1e-9


# --- look-up --------------------------------------------------------------------------------------------------------


def proposal(draft: ngram.NGram, token: int, k: int = 8) -> list[int]:
    return list(draft.propose(Context([token], Sampler()), k).tokens)


def slow(ids: list[int], k: int) -> list[int]:
    """The rule by brute force; `ids` with the chosen token."""
    found = []
    for place in range(2, len(ids)):
        common = 0
        while common < min(place, ngram.LONGEST) and ids[place - 1 - common] == ids[-1 - common]:
            common += 1
        if common >= 2:
            found.append((common, place))
    if not found:
        return []
    place, text = max(sorted(found, key=lambda one: -one[1])[: ngram.PLACES])[1], list(ids)
    for at in range(place, place + k):
        if text[at] == ngram.MEDIUM:
            break
        text.append(text[at])
    return text[len(ids) :]


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(st.one_of(st.lists(st.integers(0, 3), max_size=12), st.none()), max_size=8), token=st.integers(0, 3)
)
def test_look_up_finds_the_longest_common_past(parts, token: int) -> None:
    draft, ids, block = ngram.start(None), [], ngram.BLOCK
    try:
        ngram.BLOCK = 5
        for part in parts:
            draft = draft.observe(Seen(part))
            ids += [ngram.MEDIUM] if part is None else part
        assert draft.length == len(ids)
        assert proposal(draft, token) == slow([*ids, token], 8)
    finally:
        ngram.BLOCK = block


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_forks_of_a_look_up_do_not_see_each_other(data) -> None:
    block = ngram.BLOCK
    try:
        ngram.BLOCK = 6
        forks = [(ngram.start(None), [])]
        for _ in range(10):
            draft, ids = data.draw(st.sampled_from(forks))
            more = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=7))
            forks.append((draft.observe(Seen(more)), ids + more))
        for draft, ids in forks:
            for token in range(3):
                assert proposal(draft, token) == slow([*ids, token], 8)
    finally:
        ngram.BLOCK = block


def test_look_up_is_bounded() -> None:
    draft = ngram.start(None)
    for i in range(70):
        draft = draft.observe(Seen(range(i * 1000, i * 1000 + ngram.BLOCK)))
    assert len(draft.blocks) == ngram.MOST_BLOCKS
    assert proposal(draft, 0) == [] and proposal(draft.observe(Seen([69001])), 69002, 3) == [69003, 69004, 69005]


def test_a_proposal_is_cut_with_its_distributions() -> None:
    whole = Proposal([1, 2, 3], torch.eye(3), 2)
    assert whole.cut(3) is whole
    part = whole.cut(1)
    assert (part.tokens, part.grade, part.probs.tolist()) == ([1], 2, [[1.0, 0.0, 0.0]])
