"""The MTP draft: its memory stays in step with the decoder's whatever forks, splits and media do, and its guesses are
those of the head itself."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.lora import LoraPair
from fluvial.engine.draft import Context, Seen
from fluvial.engine.drafts import _words, mtp
from fluvial.engine.drafts._words import Words
from fluvial.engine.feed import Feed
from fluvial.engine.sampling import Sampler, SamplingParams
from fluvial.engine.stretch import Stretch
from fluvial.models.mtp import Mtp
from tests.engine.scripted import decoding, said
from tests.models import zoo

EXACT = 1e-9
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
NAMES = ("transformer", "delta_hybrid", "media_hybrid")


@cache
def model_of(name: str) -> Any:
    """A decoder of the zoo with a random head of its own."""
    torch.manual_seed(5)
    decoder = zoo.decoder(name)
    attention = zoo.MROPE if name == "media_hybrid" else zoo.ATTENTION
    head = Mtp(decoder.config, [attention, zoo.FF]).double().requires_grad_(False)
    for parameter in head.parameters():
        parameter += torch.randn_like(parameter) * 0.1
    return SimpleNamespace(name=name, decoder=decoder, draft_head=head, tokenizer=SimpleNamespace(eos_ids=frozenset()))


def feed_of(name: str, prompt: list[int]) -> Feed:
    model = model_of(name)
    return Feed.start(model, draft=mtp.start(model)).ids(prompt)


def read(draft: mtp.MtpDraft) -> Any:
    """The head's state when it has read all pairs."""
    draft._read(None)
    return draft._state


def in_one_go(name: str, ids: list[int]) -> tuple[Any, Any]:
    """The head on all pairs of these tokens: its hidden states and its state."""
    model = model_of(name)
    x = model.decoder.embed(torch.tensor([ids]))
    return model.draft_head(model.decoder(x)[0][:, :-1], x[:, 1:])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6, deadline=None)
@given(parts=st.lists(st.integers(1, 7), min_size=1, max_size=5), asked=st.integers(0, 4), seed=st.integers(0, 99))
def test_its_memory_does_not_depend_on_how_tokens_came(name, parts, asked, seed):
    ids = torch.randint(zoo.VOCAB, (sum(parts),), generator=torch.Generator().manual_seed(seed)).tolist()
    feed, at = Feed.start(model_of(name), draft=mtp.start(model_of(name))), 0
    for i, n in enumerate(parts):
        feed, at = feed.ids(ids[at : at + n]), at + n
        if i == asked:  # guesses leave no trace, nor does a fork
            feed.draft.propose(Context([*ids[:at], 7], Sampler()), 3)
            feed.ids([9, 9, 9]).draft.propose(Context([7], Sampler()), 2)
    if len(ids) > 1:
        assert zoo.distance(read(feed.draft), in_one_go(name, ids)[1]) <= EXACT
    guesses = feed.draft.propose(Context([*ids, 7], Sampler()), 3).tokens
    h, state = in_one_go(name, [*ids, 7])
    model, expected = model_of(name), []
    for _ in range(3):
        expected.append(int(model.decoder.logits(h[0, -1]).argmax()))
        h, state = model.draft_head(h[:, -1:], model.decoder.embed(torch.tensor([expected[-1:]])), state)
    assert list(guesses) == expected


@settings(max_examples=8, deadline=None)
@given(runs=st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_pairs_of_media_rotate_as_the_media_do(runs, seed):
    model, feed = (
        model_of("media_hybrid"),
        Feed.start(model_of("media_hybrid"), draft=mtp.start(model_of("media_hybrid"))),
    )
    total = sum(n for _, n in runs)
    x, places, at = zoo.inputs(1, total, seed), torch.zeros(3, 1, 0, dtype=torch.long), 0
    for medium, n in runs:
        part, start = x[0, at : at + n], feed.state.rotary[0]
        own = torch.stack([torch.zeros(n), torch.arange(n) // 3, torch.arange(n) % 3]).long()
        text = torch.arange(n).expand(3, -1)
        places = torch.cat([places, ((own if medium else text) + start)[:, None]], -1)
        feed, at = feed.read([Stretch(x=part, positions=own if medium else None)]), at + n
    hidden, _ = model.decoder(x, positions=places)
    if total > 1:
        state = model.draft_head(hidden[:, :-1], x[:, 1:], positions=places[..., :-1])[1]
        assert zoo.distance(read(feed.draft), state) <= EXACT
    token = model.decoder.embed(torch.tensor([[7]]))
    whole = model.draft_head(hidden, torch.cat([x[:, 1:], token], 1), positions=places)[0]
    assert feed.draft.propose(Context([7], Sampler()), 1).tokens == [int(model.decoder.logits(whole[0, -1]).argmax())]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 3}])
def test_answers_with_it(name, sampling):
    """Greedy tokens are the plain ones; and memory is in step after accepted and refused guesses alike."""
    ahead = decoding(feed_of(name, PROMPT), 3, PROMPT, **sampling)
    answer = said(ahead, 14)
    if not sampling:
        plain = Feed.start(model_of(name)).ids(PROMPT)
        assert answer == said(decoding(plain, 0, PROMPT), 14)
    assert ahead.drafted > 0
    found = ahead.leave()
    assert zoo.distance(found.state, Feed.start(model_of(name)).ids([*PROMPT, *answer]).state) <= EXACT
    assert zoo.distance(read(found.draft), in_one_go(name, [*PROMPT, *answer])[1]) <= EXACT


def test_behind_tokens_known_by_id_alone_it_begins_anew():
    draft = mtp.start(model_of("delta_hybrid")).observe(Seen([1, 2, 3]))
    assert draft.propose(Context([4], Sampler()), 2).tokens == ()
    feed = Feed.start(model_of("delta_hybrid"), draft=draft).ids([5, 6])
    assert len(feed.draft.propose(Context([7], Sampler()), 2).tokens) == 2


def test_a_checkpoint_without_a_head_is_refused():
    with pytest.raises(UnsupportedError, match="no head for multi-token prediction"):
        mtp.start(SimpleNamespace(name="x", draft_head=None))


@pytest.mark.parametrize("route", [None, {"p": 0.7}])
def test_a_part_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch, route):
    monkeypatch.setattr(_words, "SIZE", 12)
    decoder, hidden = zoo.decoder("mamba2"), zoo.inputs(1, 1, 1)[0, 0]
    pair = LoraPair(zoo.inputs(1, 2, 2)[0], torch.randn(zoo.VOCAB, 2, dtype=torch.float64))
    decoder.head.attach("p", pair)
    try:
        whole, words = decoder.logits(hidden, route).float(), Words().seen([40, 3, 30, 40])
        assert words.others == (30, 40)
        found = words.logits(decoder, hidden, route)
        some = [*range(12), 30, 40]
        torch.testing.assert_close(found[some], whole[some])
        assert found.isfinite().sum() == len(some)
        probs = Sampler(SamplingParams(temperature=1.0, seed=1)).probs(found, [])
        assert probs[some].sum() == pytest.approx(1)
        for id in range(12, zoo.VOCAB):
            words = words.seen([id])
        torch.testing.assert_close(words.logits(decoder, hidden, route), whole)  # too many lie outside
        back = words.seen([1] * 200)
        assert back.logits(decoder, hidden, route).isfinite().sum() < zoo.VOCAB or len(back.others) == zoo.VOCAB - 12
    finally:
        decoder.head.detach("p")
