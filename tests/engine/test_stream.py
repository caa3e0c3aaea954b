"""Live frames and texts for hours: the same memory as if the template had rendered each, at a steady cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluvial.adapters.errors import UsageError
from fluvial.engine.session import Session
from fluvial.engine.snapshot import Repeat
from tests.engine.tiny import VARIANTS, frames, tiny
from tests.models.zoo import distance


@pytest.mark.parametrize("variant", VARIANTS)
def test_streamed_frames_and_texts_are_those_of_the_template(variant, monkeypatch):
    def told(session: Session) -> Session:
        for frame in frames(14):
            session.push(frame)
            if frame.index in (5, 10):
                say = session.stream if session is live else session.push
                say("Gate 3 is closed.")
        return session

    live, plain = Session(tiny(variant)), Session(tiny(variant))
    told(live)
    monkeypatch.setattr(Repeat, "known", False)
    told(plain)
    assert len(live._now.fed) < len(plain._now.fed)
    asked = [list(session.ask("What happened?", max_tokens=5)) for session in (live, plain)]
    assert live.position == plain.position
    assert asked[0][-1].text == asked[1][-1].text
    assert distance(live._now.feed.state, plain._now.feed.state) <= 1e-9


def test_a_stream_leaves_no_trace_that_grows():
    session, sizes = Session(tiny("delta")), []
    for i, frame in enumerate(frames(60)):
        session.push(frame)
        if i % 5 == 0:
            session.stream(f"Event {i}.")
        now = session._now
        sizes.append((len(now.fed), len(now.open_turn), len(now.media), len(now.messages)))
    assert sizes[-1] == sizes[15]
    digests = {session._now.media}
    session.push(frames(1, seed=99)[0])
    session.stream("More.")
    assert session._now.media not in digests  # what was seen is part of the name


def test_a_streamed_conversation_is_saved_and_goes_on(tmp_path: Path):
    session = Session(tiny("delta"))
    for frame in frames(12):
        session.push(frame)
    session.stream("Gate 3 is closed.")
    session.save(tmp_path / "talk.state")
    other = Session.load(session.model, tmp_path / "talk.state")
    assert other._now.streamed == session._now.streamed > 0
    for one in (session, other):
        for frame in frames(6, seed=40):
            one.push(frame)
    assert distance(session._now.feed.state, other._now.feed.state) <= 1e-9


def test_an_empty_event_changes_nothing():
    session = Session(tiny("delta"))
    for frame in frames(3):
        session.push(frame)
    before = session.snapshot()
    with pytest.raises(UsageError, match="empty"):
        session.stream("  ")
    assert session.snapshot() is before
