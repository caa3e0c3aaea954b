"""Drafts in sessions: with media, plugins, low-bit weights, forks, stops, cancels and files, answers stay the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.adapters.errors import ModelNotFoundError, UnsupportedError
from fluvial.engine.draft import Draft
from fluvial.engine.drafts import _model, drafting, methods
from fluvial.engine.drafts._words import Words
from fluvial.engine.drafts.head import HeadDraft
from fluvial.engine.drafts.mtp import MtpDraft
from fluvial.engine.engine import Engine, load
from fluvial.engine.events import Done
from fluvial.engine.feed import Feed
from fluvial.engine.media import Image
from fluvial.engine.model import Model, load_model
from fluvial.engine.session import Session
from fluvial.models.ahead import Ahead
from fluvial.models.decoder import BlockConfig
from fluvial.models.mtp import Mtp
from tests.engine.scripted import FixedDepths, decoding, said
from tests.engine.test_plugins import lora
from tests.engine.tiny import VARIANTS, frames, picture, tiny, write_model
from tests.models.zoo import distance


def draft_of(kind: str, model: Model) -> Draft | None:
    torch.manual_seed(6)
    decoder = model.decoder
    if kind == "head":
        return HeadDraft(model, Ahead(decoder.config.d_model, 32).to(decoder.dtype).requires_grad_(False), Words())
    if kind == "mtp":
        blocks = [BlockConfig("attention", {"heads": 2}), BlockConfig("swiglu", {"d_ff": 64})]
        head = Mtp(decoder.config, blocks).to(decoder.dtype).requires_grad_(False)
        return MtpDraft(model, head, head.init_state(), Words())
    if kind in ("none", *methods()):
        return None if kind == "none" else drafting(kind, model)
    return _model.between(model, model if kind == "itself" else tiny("rwkv7" if model is tiny("delta") else "delta"))


def session_of(model: Model, kind: str, depth: int = 5, **options) -> Session:
    """A session that always drafts."""
    always = copy.copy(model)
    always.depths = FixedDepths(depth)
    return Session(always, draft=draft_of(kind, model), **options)


def ask(session: Session, question: str, **options) -> Done:
    return list(session.ask(question, **({"max_tokens": 8} | options)))[-1]


def talk(session: Session, folder: Path) -> list[str]:
    """Text, an image, a video's frames, a cut, a stop, forks, a file: the answers."""
    session.push("Gate 3 is closed today. Gate 4 is open.")
    session.push(Image(picture(1)))
    answers = [ask(session, "What is there?").text]
    for frame in frames(3):
        session.push(frame)
    cut = session.ask("What now?", max_tokens=16)
    answers += ["".join(next(cut).text for _ in range(7))]
    cut.close()
    fork = session.fork()
    answers += [ask(fork, "Left?").text, ask(session, "Right?", commit=False).text]
    whole = ask(session.fork(), "And now?", max_tokens=16).text
    answers += [ask(session, "And now?", max_tokens=16, stop=whole[9:11]).text]
    session.save(folder / "talk.session")
    again = Session.load(session.model, folder / "talk.session", session._draft)
    answers += [ask(talker, "Again?").text for talker in (session, again)]
    answers += [ask(again, "Hot?", temperature=1.2, seed=3, repetition_penalty=1.3).text]
    assert answers[-3] == answers[-2]
    return answers


def test_a_conversation_is_the_same_with_every_draft(tmp_path: Path) -> None:
    talks = {kind: session_of(tiny("hybrid"), kind) for kind in ("none", "ngram", "mtp", "another")}
    answers = {kind: talk(session, tmp_path) for kind, session in talks.items()}
    assert answers["ngram"] == answers["none"]
    for kind in ("mtp", "another"):
        assert answers[kind][:-1] == answers["none"][:-1]  # the last one is drawn: alike in distribution only
    assert distance(talks["another"]._now.feed.state, talks["none"]._now.feed.state) <= 1e-9


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_with_a_model_of_its_own(variant: str) -> None:
    """A model is always right about itself: as few forwards as the depth allows."""
    plain, drafted = (ask(session_of(tiny(variant), kind), "Tell me.", max_tokens=12) for kind in ("none", "itself"))
    assert drafted.text == plain.text
    assert (plain.usage.forwards, drafted.usage.forwards) == (12, 2)
    assert drafted.usage.drafted_tokens == drafted.usage.accepted_tokens == 10


@settings(max_examples=6, deadline=None)
@given(stops=st.lists(st.integers(1, 9), min_size=1, max_size=2), kind=st.sampled_from(["ngram", "itself"]))
def test_cancelled_anywhere_memory_stands_at_the_last_token(stops: list[int], kind: str) -> None:
    model = tiny("delta")
    session = session_of(model, kind)
    for n in stops:
        events = session.ask("Go on.", max_tokens=40)
        for _ in range(n):
            next(events)
        events.close()
    assert distance(session._now.feed.state, Feed.start(model).ids(session._now.ids).state) <= 1e-9
    assert session.position == len(session._now.ids)


def test_a_seed_gives_the_same_words_with_look_up() -> None:
    options = {"temperature": 0.9, "seed": 4, "repetition_penalty": 1.2, "max_tokens": 16}
    texts = {
        ask(session_of(tiny("delta"), kind), "one two one two one two", **options).text for kind in ("none", "ngram")
    }
    assert len(texts) == 1


def test_look_up_copies_in_few_forwards() -> None:
    """A model that repeats itself, as this one does, is copied from its own words."""
    session = session_of(tiny("transformer"), "ngram", 15)
    done = ask(session, "Tell me.", max_tokens=60)
    assert done.text == ask(session_of(tiny("transformer"), "none"), "Tell me.", max_tokens=60).text
    assert done.usage.forwards < 60 and done.usage.forwards + done.usage.accepted_tokens == 60


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_with_plugins_on_low_bit_weights(quant: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    engine = Engine(load_model(write_model(tmp_path / "model", "delta"), quant=quant))
    engine.plugins.load(lora(tmp_path / "a", engine.model, 1))
    texts = []
    for kind in ("none", "ngram", "itself", "head", "mtp"):
        session = session_of(engine.model, kind, plugin="a")
        session.push(Image(picture(2)))
        texts.append([ask(session, "What?").text, ask(session, "And?", plugin={}).text])
    assert all(text == texts[0] for text in texts[1:])


def test_the_model_draft_reads_once_and_survives_forks() -> None:
    small = tiny("delta")
    draft = _model.ModelDraft(small, small.decoder.init_state())
    feed = Feed.start(tiny("rwkv7"), draft=draft).ids(range(5, 30))
    run = decoding(feed, 4, range(5, 30))
    said(run, 9)
    after = run.leave()
    for fork in (after, run.mark()()):
        drafted = fork.draft
        drafted._logits([1]).__next__()  # reads what it missed
        position = drafted._state.position[0]
        assert (position, drafted._missed) == (fork.position, [])
    assert distance(after.draft._state, Feed.start(small).ids([*range(5, 30), *run.history[25:]]).state) <= 1e-9


def test_the_api_names_the_draft(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path = write_model(tmp_path / "a", "delta")
    engine = load(path, draft="ngram")
    assert engine.explain()["draft"] == "ngram" and load(path, draft="none").explain()["draft"] == "none"
    assert engine.session()._now.feed.draft.name == "ngram"
    assert engine.session(draft="none")._now.feed.draft is None
    assert engine.session(draft=str(path))._now.feed.draft.name == str(path)
    engine.session().save(tmp_path / "talk")
    assert engine.load_session(tmp_path / "talk")._now.feed.draft.name == "ngram"


def test_a_draft_that_cannot_apply_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no draft 'nothing'.*ngram"):
        drafting("nothing", tiny("delta"))
    (tmp_path / "a").mkdir()
    path = write_model(tmp_path / "a", "delta")
    data = json.loads((path / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    a, b = (token for token in vocab if len(token) == 1 and token in "xy")
    vocab[a], vocab[b] = vocab[b], vocab[a]
    (path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UnsupportedError, match=r"cannot draft.*Its tokens are others: token \d+"):
        drafting(str(path), tiny("delta"))
