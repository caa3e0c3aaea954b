"""Live sessions: a plain session's memory, while many threads push, ask and leave; nothing hangs or is lost."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.adapters.errors import FluvialError, UsageError
from fluvial.encoders.economy import Economy
from fluvial.encoders.frame import Frame, Gap
from fluvial.engine.engine import Engine
from fluvial.engine.events import Done, Token
from fluvial.engine.inbox import Inbox
from fluvial.engine.live import LiveSession
from fluvial.engine.session import Session
from tests.engine.tiny import frames, picture, tiny
from tests.models.zoo import distance


@pytest.fixture
def live():
    before = threading.active_count()
    with LiveSession(Session(tiny("delta")), queue=4, overflow="block") as session:
        yield session
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before  # no thread stays behind


def text(events) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


def test_a_live_session_remembers_what_a_plain_one_does(live):
    plain = Session(tiny("delta"))
    for frame in frames(7):
        live.push(frame)
        plain.push(frame)
    live.push("Gate 3 is closed.")
    plain.stream("Gate 3 is closed.")
    live.push(Gap(9.0, 3.25))
    plain.stream("[no picture for 3.2 s]")
    aside = live.ask("What now?", commit=False, max_tokens=5)
    assert text(aside) == text(plain.ask("What now?", commit=False, max_tokens=5))
    assert aside.t == 3.0
    assert text(live.ask("And?", max_tokens=5)) == text(plain.ask("And?", max_tokens=5))
    stats = live.flush()
    assert (stats.frames, stats.texts, stats.gaps, stats.dropped, stats.answers) == (7, 1, 1, 0, 2)
    assert stats.tokens == plain.position and stats.t == 3.0
    assert distance(live.fork()._now.feed.state, plain._now.feed.state) <= 1e-9


def test_frames_enter_the_stream_while_a_question_is_answered_aside(live):
    live.push(frames(1)[0])
    answer = live.ask("What is there?", commit=False, max_tokens=400)
    next(answer)
    for frame in frames(8)[1:]:
        live.push(frame)
    while live.stats().frames < 8:
        next(answer)  # both go on
    answer.close()
    assert answer.t == 0.0
    assert not any(isinstance(event, Done) for event in answer)


def test_a_cancelled_answer_leaves_the_memory_at_a_token(live):
    live.push(frames(1)[0])
    answer = live.ask("What is there?", max_tokens=10_000)
    given_out = [next(answer) for _ in range(3)]
    answer.close()
    given_out += list(answer)
    assert len(given_out) < 10_000
    said = live.fork().messages[-1]["content"]
    assert said == text(given_out)


def test_standing_questions_are_asked_at_their_times(live):
    watch = live.watch("What is there?", every=2.0, max_tokens=3)
    gate = live.watch("Why?", when=lambda frame: frame.index == 3, max_tokens=2)
    live.feed(frames(17)).wait(60)  # 0 to 8 seconds
    live.flush()
    watch.close()
    gate.close()
    assert [seen.t for seen in watch] == [2.0, 4.0, 6.0, 8.0]
    assert [seen.t for seen in gate] == [1.5]
    other = live.watch("x", every=1.0)
    other.close()
    assert list(other) == []


def test_a_watch_says_what_a_question_then_would_have(live):
    watch, plain = live.watch("What is there?", every=1.0, max_tokens=4), Session(tiny("delta"))
    live.feed(frames(5)).wait(60)
    live.flush()
    watch.close()
    wanted = []
    for frame in frames(5):
        plain.push(frame)
        if frame.t in (1.0, 2.0):
            wanted.append(text(plain.ask("What is there?", commit=False, max_tokens=4)))
    assert [seen.text for seen in watch] == wanted


def test_a_faulty_condition_ends_its_watch_only(live):
    watch = live.watch("Why?", when=lambda frame: 1 / 0 > 0)
    live.push(frames(1)[0])
    with pytest.raises(ZeroDivisionError):
        next(watch)
    assert live.flush().frames == 1


def test_an_error_of_the_engine_reaches_everyone_who_waits(monkeypatch):
    session = Session(tiny("delta"))
    with LiveSession(session, queue=4, overflow="block") as live:
        watch, waiting = live.watch("x", every=100.0), live.ask("What is there?", commit=False, max_tokens=10_000)
        next(waiting)
        monkeypatch.setattr(session, "push", lambda frame: (_ for _ in ()).throw(RuntimeError("out of order")))
        live.push(frames(1)[0])
        for wait in (lambda: next(watch), lambda: list(waiting), live.flush, lambda: live.push("x"), live.fork):
            with pytest.raises(FluvialError, match="out of order"):
                wait()


def test_closing_under_load_ends_everything():
    live = LiveSession(Session(tiny("delta")), queue=2, overflow="block")
    endless = (Frame(picture(i % 5), t=i / 10, index=i) for i in range(10**9))
    feeding, watch = live.feed(endless), live.watch("What is there?", every=0.5, max_tokens=50)
    ends: list[str] = []

    def reader(answers) -> None:
        try:
            for _ in answers:
                pass
        except FluvialError as error:
            ends.append(error.what)

    answers = [watch, live.ask("Why?", commit=False, max_tokens=10**6), live.ask("Why?", max_tokens=10**6)]
    threads = [threading.Thread(target=reader, args=(one,)) for one in answers]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    live.close()
    for thread in threads:
        thread.join(60)
    assert ends == ["The session is closed."] * 3 and not any(thread.is_alive() for thread in threads)
    assert feeding.wait(60) and feeding.pushed > 0
    live.close()
    with pytest.raises(UsageError, match="closed"):
        live.ask("Anyone?")


def test_a_source_that_fails_says_so(live):
    def broken():
        yield frames(1)[0]
        raise OSError("unplugged")

    with pytest.raises(FluvialError, match="unplugged"):
        live.feed(broken()).wait(60)
    assert live.flush().frames == 1


def test_what_cannot_be_pushed_or_asked(live):
    for wrong in (" ", 3, None):
        with pytest.raises(UsageError):
            live.push(wrong)
    for wrong in ({}, {"every": 0.0}, {"every": 1.0, "when": bool}):
        with pytest.raises(UsageError):
            live.watch("x", **wrong)
    with pytest.raises(UsageError, match="max_tokens"):
        list(live.ask("x", max_tokens=0))
    assert live.flush().frames == 0  # it goes on
    for options in ({"queue": 0}, {"overflow": "drop"}):
        with pytest.raises(UsageError):
            LiveSession(Session(tiny("delta")), **options)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4), st.sampled_from(["drop_oldest", "drop_newest"]), st.lists(st.booleans(), max_size=30))
def test_the_inbox_loses_only_what_it_counts(size: int, overflow, steps: list[bool]):
    """True puts a frame, False takes one."""
    inbox, inside, taken, lost = Inbox(size, overflow), [], [], 0
    for i, puts in enumerate(steps):
        if puts:
            accepted, dropped = inbox.put(i, droppable=True)
            lost += dropped
            if len(inside) == size:
                assert (accepted, dropped) == (overflow == "drop_oldest", 1)
                inside = [*inside[1:], i] if accepted else inside
            else:
                assert (accepted, dropped) == (True, 0)
                inside.append(i)
        elif (item := inbox.take()) is not None:
            taken.append(item)
            assert item == inside.pop(0)
    assert len(inbox) == len(inside) and len(taken) + lost + len(inside) == sum(steps)


def test_texts_are_never_dropped():
    inbox = Inbox(2, "drop_oldest")
    inbox.put("text", droppable=False)
    inbox.put("frame", droppable=True)
    assert inbox.put("more text", droppable=False) == (True, 1)
    assert inbox.put("frame", droppable=True) == (False, 1)
    with pytest.raises(FluvialError, match="stayed full"):
        inbox.put("third text", droppable=False, timeout=0.05)
    assert [inbox.take(), inbox.take(), inbox.take()] == ["text", "more text", None]


def test_frames_that_show_nothing_new_are_left_out(live):
    economy = Economy(at_least_every=3.0)
    with LiveSession(Session(tiny("delta")), queue=8, overflow="block", economy=economy) as still:
        results = [still.push(Frame(picture(0), t=i / 2, index=i)) for i in range(10)]
        changed = picture(0).copy()
        changed[:30, :30] = 255 - changed[:30, :30]
        results.append(still.push(Frame(changed, t=5.0)))
        assert [i for i, result in enumerate(results) if result.accepted] == [0, 6, 10]
        assert still.flush().skipped == 8
    for wrong in ({"threshold": 2.0}, {"at_least_every": 0.0}):
        with pytest.raises(UsageError):
            Economy(**wrong)


def test_asyncio():
    async def talk() -> tuple[str, list[float]]:
        async with Engine(tiny("delta")).asession(queue=4, overflow="block") as session:
            for frame in frames(5):
                await session.push(frame)
            events = [event async for event in session.ask("What is there?", max_tokens=4)]
            times = []

            async def look() -> None:
                async for seen in session.watch("What now?", every=1.0, max_tokens=2):
                    times.append(seen.t)
                    if len(times) == 2:
                        return

            looking = asyncio.create_task(look())
            await asyncio.sleep(0.1)
            for frame in frames(6, seed=9):
                await session.push(Frame(frame.rgb, frame.t + 10, frame.index))
            await looking
            return text(events), times

    said, times = asyncio.run(talk())
    plain = Session(tiny("delta"))
    for frame in frames(5):
        plain.push(frame)
    assert said == text(plain.ask("What is there?", max_tokens=4))
    assert times == [11.0, 12.0]
