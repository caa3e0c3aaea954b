"""Streamed text: the same however the bytes are cut, never taken back, never with a stop string."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.adapters.errors import UsageError
from fluvial.engine.text_stream import TextStream

LETTERS = st.sampled_from("aab\n雪é👍<") | st.characters(exclude_categories=["Cs"])
TEXTS = st.text(LETTERS, max_size=30)
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=4)


def pieces(raw: bytes, cuts: list[int]) -> list[bytes]:
    ends = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    return [raw[at:end] for at, end in pairwise(ends)]


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text up to the first place where a stop string is complete, found by looking at each place."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=150)
@given(raw=TEXTS.map(str.encode) | st.binary(max_size=20), cuts=st.lists(st.integers(0, 1000)), stops=STOPS)
def test_any_cutting_gives_the_reference(raw: bytes, cuts: list[int], stops: list[str]) -> None:
    stream = TextStream(stops)
    shown = ""
    for piece in pieces(raw, cuts):
        shown += stream.push(piece)
        shown.encode()
        assert not any(stop in shown for stop in stops)
        assert reference(raw.decode("utf-8", "replace"), stops)[0].startswith(shown)  # nothing is ever taken back
    shown += stream.finish()
    assert (shown, stream.stopped) == reference(raw.decode("utf-8", "replace"), stops)
    assert stream.finish() == ""


def test_an_incomplete_character_is_held_back() -> None:
    stream = TextStream()
    assert stream.push("é".encode()[:1]) == "" and stream.holding and stream.push("é".encode()[1:]) == "é"
    assert not stream.holding
    assert [stream.push(bytes([byte])) for byte in "a👍".encode()] == ["a", "", "", "", "👍"]
    assert stream.push("雪".encode()[:2]) == "" and stream.finish() == "�"


def test_text_is_held_back_no_longer_than_it_must() -> None:
    stream = TextStream(["\nUser:"])
    assert [stream.push(piece) for piece in (b"Hi\nU", b"s", b" no\n", b"User", b":x")] == ["Hi", "", "\nUs no", "", ""]
    assert stream.holding is False
    assert stream.stopped == "\nUser:" and stream.push(b"more") == "" and stream.finish() == ""


def test_the_first_complete_stop_string_ends_the_text() -> None:
    for stops, text, stop in ((["abcd", "bc"], "a", "bc"), (["bc", "abc"], "", "abc"), ("bc", "a", "bc")):
        stream = TextStream(stops)
        assert stream.push(b"abcd") == text and stream.stopped == stop


def test_what_is_refused() -> None:
    for stop in ("", ["a", ""], [3]):
        with pytest.raises(UsageError, match="stop string"):
            TextStream(stop)  # type: ignore[arg-type]
    stream = TextStream()
    stream.finish()
    with pytest.raises(UsageError, match="finished"):
        stream.push(b"a")
