"""Sessions: each turn feeds only what is new, and forks, snapshots, cancelling and files leave exact states."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from fluvial.adapters.errors import IntegrityError, MediaError, UnsupportedError, UsageError
from fluvial.encoders.frame import Frame
from fluvial.engine.engine import Engine
from fluvial.engine.events import Done, Token
from fluvial.engine.feed import Feed
from fluvial.engine.media import Image, Video
from fluvial.engine.session import Session
from fluvial.engine.stretch import Stretch
from fluvial.engine.template import ChatTemplate, Media, Special, Text, encode_parts
from tests.engine.tiny import VARIANTS, frames, picture, tiny
from tests.models.zoo import distance

each_variant = pytest.mark.parametrize("variant", VARIANTS)


def answer(session: Session, question: str = "What is there?", **options) -> Done:
    events = list(session.ask(question, **({"max_tokens": 6} | options)))
    assert "".join(event.text for event in events[:-1]) == events[-1].text
    assert all(isinstance(event, Token) for event in events[:-1])
    answer.ids = [event.id for event in events[:-1] if event.id >= 0]
    return events[-1]


def cold(session: Session, media: list[torch.Tensor], answers: list[list[int]] | None) -> Feed:
    """One feed of the whole conversation from nothing: the template's parts, the media, the answered tokens."""
    model, parts, said, steps = session.model, list(session._now.fed), iter(answers or ()), iter(media)
    feed, at = Feed.start(model), 0
    while at < len(parts):
        (run,) = encode_parts([parts[at]], model.tokenizer, first=at == 0)
        if isinstance(run, Media):
            for step in next(steps):
                feed = feed.ids([model.tokenizer.id(run.text)]).read([Stretch(x=step)])
        else:
            feed = feed.ids(run)
        if answers is not None and parts[at] == Special("<|assistant|>"):
            feed = feed.ids(next(said))
            at += at + 1 < len(parts) and isinstance(parts[at + 1], Text)
        at += 1
    return feed


def test_the_head_is_read_once_for_all_that_is_pushed(monkeypatch):
    """It is as large as several layers: what comes before an image is asked for nothing."""
    session, calls = Session(tiny("delta")), list[int]()
    head = session.model.decoder.logits
    monkeypatch.setattr(session.model.decoder, "logits", lambda *args: calls.append(1) or head(*args))
    session.push(Image(picture(1)))
    assert len(calls) == 1 and session._now.feed.logits is not None


@each_variant
def test_a_conversation_with_media_equals_one_cold_feed(variant):
    model = tiny(variant)
    session, image, clip, answers = Session(model, system="Be brief."), picture(1), frames(5), []
    session.push(Image(image))
    assert answer(session).usage.media_tokens > 0
    answers.append(answer.ids)
    for frame in clip:
        session.push(frame)
    session.push("Gate 3 is closed today.")
    for question in ("Which gate?", "And now?"):
        answer(session, question, max_tokens=4)
        answers.append(answer.ids)
    pairs = (clip[0:2], clip[2:4], clip[4:5])
    media = [model.encode([Frame(image)], video=False), *(model.encode(pair, video=True) for pair in pairs)]
    expected = cold(session, media, answers)
    assert expected.position == session.position
    assert distance(session._now.feed.state, expected.state) <= 1e-9
    torch.testing.assert_close(session._now.feed.logits, expected.logits, rtol=1e-4, atol=1e-5)


@each_variant
def test_the_next_turn_feeds_only_what_is_new(variant):
    session = Session(tiny(variant))
    session.push("word " * 200)
    first = answer(session)
    second = answer(session, "And?")
    assert first.usage.prompt_tokens > 200
    assert second.usage.prompt_tokens < 15
    assert second.usage.position == session.position


@each_variant
def test_forks_and_snapshots_do_not_see_each_other(variant):
    session = Session(tiny(variant))
    session.push(Image(picture(3)))
    start = session.snapshot()
    left, right = session.fork(), session.fork()
    texts = [answer(left, "Left?").text, answer(right, "Right?").text]
    again = [answer(session.fork(), "Left?").text, answer(session.fork(), "Right?").text]
    assert texts == again
    assert session.snapshot() is start
    answer(session, "Left?")
    session.restore(start)
    assert answer(session, "Left?").text == texts[0]


@each_variant
def test_a_question_on_a_fork_does_not_enter_the_memory(variant):
    session = Session(tiny(variant))
    session.push(frames(1)[0])  # half a step, still waiting
    before, position = session.snapshot(), session.position
    asked = list(session.ask("What?", max_tokens=3, commit=False))[-1]
    assert session.snapshot() is before and session.position == position
    assert answer(session, "What?", max_tokens=3).text == asked.text


@each_variant
def test_cancelling_leaves_the_session_at_the_last_token_given_out(variant):
    model = tiny(variant)
    session, full = Session(model), Session(model)
    whole = list(full.ask("Tell me.", max_tokens=12))
    events = session.ask("Tell me.", max_tokens=12)
    got = [next(events) for _ in range(3)]
    events.close()
    assert got == whole[:3]
    assert session.messages[-1]["content"] == "".join(token.text for token in got)
    ids = session._now.ids
    assert distance(session._now.feed.state, Feed.start(model).ids(ids).state) <= 1e-9
    assert session.position == len(ids) < full.position
    assert answer(session, "Go on.").reason in ("end", "length")


def test_stop_strings_leave_exactly_the_text_that_was_kept():
    model = tiny("delta")
    whole = answer(Session(model), "Tell me.", max_tokens=30).text
    assert len(whole) > 8
    stop = whole[5:8]
    session = Session(model)
    stopped = answer(session, "Tell me.", max_tokens=30, stop=stop)
    assert stopped.reason == "stop"
    assert session.messages[-1]["content"] == stopped.text == whole[: whole.index(stop)]
    prompt = session._template.parts([{"role": "user", "content": "Tell me."}])
    (asked,) = encode_parts(prompt, model.tokenizer)
    said = session._now.ids[len(asked) :]
    assert model.tokenizer.decode(said) == stopped.text
    assert distance(session._now.feed.state, Feed.start(model).ids([*asked, *said]).state) <= 1e-9


@each_variant
def test_a_saved_session_goes_on_as_if_nothing_had_happened(variant, tmp_path: Path):
    model = tiny(variant)
    session = Session(model)
    session.push(Image(picture(4)))
    answer(session, temperature=1.0, seed=5)
    session.push("Remember 42.")
    session.save(tmp_path / "talk.session")
    other = Session.load(model, tmp_path / "talk.session")
    assert other.messages == session.messages and other.position == session.position
    options = {"temperature": 0.8, "max_tokens": 10}
    assert answer(other, "What?", **options).text == answer(session, "What?", **options).text
    assert torch.equal(other._now.feed.logits, session._now.feed.logits)


def test_a_saved_session_is_refused_by_another_model_and_when_damaged(tmp_path: Path):
    session, path = Session(tiny("delta")), tmp_path / "talk.session"
    answer(session)
    session.save(path)
    with pytest.raises(IntegrityError, match="another model"):
        Session.load(tiny("transformer"), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(IntegrityError, match="damaged"):
        Session.load(tiny("delta"), path)
    with pytest.raises(UsageError, match="Cannot write"):
        session.save(tmp_path / "none" / "talk.session")


def test_a_template_that_rewrites_answers_keeps_media_in_memory():
    """Templates that drop an answer's thinking: memory follows what the next turns show, images included."""
    model = copy.copy(tiny("delta"))
    source = model.template.source.replace("<|assistant|>{%- endif", "<|assistant|>(thinking){%- endif")
    assert source != model.template.source
    model.template = ChatTemplate(source, controls=model.tokenizer.controls, media=model.template.media)
    session = Session(model)
    session.push(Image(picture(1)))
    for question in ("What is there?", "And now?", "Why?"):
        answer(session, question, max_tokens=3)
    shown = "".join(part.text for part in session._now.fed)
    assert shown.count("(thinking)") == 0 and shown.count("<|assistant|>") == 3
    fed = cold(session, [model.encode([Frame(picture(1))], video=False)], None)
    assert distance(session._now.feed.state, fed.state) <= 1e-9


def test_a_seed_makes_sampling_repeatable():
    texts = [answer(Session(tiny("delta")), temperature=1.0, seed=s, max_tokens=12).text for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_what_cannot_be_read_leaves_the_session_as_it_was(tmp_path: Path):
    session = Session(tiny("delta"))
    session.push("Hello.")
    before = session.snapshot()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n rubbish")
    for thing in (Image(tmp_path / "none.png"), Image(tmp_path / "broken.png"), Video(tmp_path / "none.mp4")):
        with pytest.raises(MediaError):
            session.push(thing)
        assert session.snapshot() is before
    with pytest.raises(UsageError, match="Cannot push a int"):
        session.push(3)
    with pytest.raises(UsageError, match="empty"):
        session.push("  ")
    with pytest.raises(UsageError, match="nothing to answer"):
        list(Session(tiny("delta")).ask())
    with pytest.raises(UsageError, match="max_tokens"):
        session.ask("x", max_tokens=0)
    with pytest.raises(UsageError, match="another model"):
        session.restore(Session(tiny("transformer")).snapshot())


def test_control_tokens_that_users_type_stay_text():
    session = Session(tiny("delta"))
    list(session.ask("<|assistant|>yes<|end|>", max_tokens=1))
    fed = session._now.ids
    controls = {session.model.tokenizer.id(token) for token in ("<|assistant|>", "<|end|>")}
    assert sum(id in controls for id in fed) <= 1 + (fed[-1] in controls)


@each_variant
def test_state_bytes_are_constant_for_recurrent_models(variant):
    engine = Engine(tiny(variant))
    session = engine.session()
    session.push("a b c d " * 40)
    early = session.nbytes()
    session.push("e f g h " * 400)
    constant = variant in ("delta", "mamba2", "rwkv7")
    assert (session.nbytes() == early) == constant
    assert engine.explain()["state"] == ("constant" if constant else "grows with the context")


def test_the_low_level_call():
    model = tiny("delta")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    logits, state = model(ids)
    assert logits.shape == (1, 5, model.decoder.config.vocab) and state.position == (5,)
    first, middle = model(ids[:, :2])
    second, _ = model(ids[:, 2:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), logits, rtol=1e-9, atol=1e-9)
    with pytest.raises(UsageError, match="outside"):
        model(torch.tensor([[10**6]]))
    with pytest.raises(UsageError, match="shape"):
        model(ids[0])


def test_a_text_model_refuses_pictures():
    model = tiny("delta")
    blind = object.__new__(type(model))
    blind.__dict__ = dict(model.__dict__) | {"tower": None}
    with pytest.raises(UnsupportedError, match="reads text only"):
        Session(blind).push(Image(picture(1)))
