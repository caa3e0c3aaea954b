"""Words and media that share forwards leave what they leave one after another, wherever chunks are cut."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.adapters.recording import TOKENS
from fluvial.encoders.frame import Frame
from fluvial.engine import feed, stretch
from fluvial.engine.draft import Seen
from fluvial.engine.feed import Feed
from fluvial.engine.model import load_model
from fluvial.engine.session import Session
from fluvial.engine.stretch import Stretch
from fluvial.models.decoder import Decoder
from fluvial.models.state import State
from tests.engine.tiny import VARIANTS, picture, tiny
from tests.models import zoo

EXACT = 1e-9


class Listener:
    """A draft that notes what it is shown: ids as they are, of a medium the rows' sums."""

    name = "listener"

    def __init__(self, heard: tuple[Any, ...] = ()) -> None:
        self.heard = heard

    def observe(self, seen: Seen) -> Listener:
        rows = zip(seen.x.sum(-1).tolist(), seen.hidden.sum(-1).tolist(), strict=True)
        what = seen.ids or [None] * len(seen.x)
        places = [None] * len(what) if seen.positions is None else seen.positions[:, 0].T.tolist()
        return Listener((*self.heard, *zip(what, places, rows, strict=True)))


def drawn(runs: list[tuple[str, int]], width: int, seed: int) -> list[Stretch]:
    draw = torch.Generator().manual_seed(seed)
    made = []
    for kind, n in runs:
        x = torch.randn(n, width, generator=draw, dtype=torch.float64)
        grid = torch.stack([torch.zeros(n), torch.arange(n) // 3, torch.arange(n) % 3]).long()
        ids = tuple(torch.randint(zoo.VOCAB, (n,), generator=draw).tolist())
        made.append(
            Stretch(ids) if kind == "text" else Stretch(x=x, positions=grid) if kind == "grid" else Stretch(x=x)
        )
    return made


RUNS = st.lists(st.tuples(st.sampled_from(("text", "grid", "row")), st.integers(0, 9)), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(runs=RUNS, chunk=st.integers(1, 60), seed=st.integers(0, 99))
def test_together_as_one_by_one(runs, chunk, seed):
    decoder = zoo.decoder("media_hybrid")
    model, before = SimpleNamespace(name="", decoder=decoder), feed.chunk_size
    start = Feed(model, decoder.init_state(), draft=Listener()).ids([3, 1, 4])
    stretches = drawn(runs, decoder.config.d_model, seed)
    alone = start
    for one in stretches:
        alone = alone.read([one])
    try:
        feed.chunk_size = lambda d_model: chunk
        together = start.read(iter(stretches))
    finally:
        feed.chunk_size = before
    assert together.state.rotary == alone.state.rotary and together.position == alone.position
    assert zoo.distance(together.state, alone.state) <= EXACT
    assert torch.allclose(together.logits, alone.logits, rtol=0, atol=1e-5)
    assert len(together.draft.heard) == len(alone.draft.heard)
    for (ids, places, rows), (other, places_too, rows_too) in zip(together.draft.heard, alone.draft.heard, strict=True):
        assert (ids, places) == (other, places_too)
        assert rows == pytest.approx(rows_too, abs=1e-9)


def test_a_rest_is_read_before_more_is_asked_for():
    """Chunks are full, and no more stretches are made than one of them needs."""
    asked = []

    def stretches():
        for n in (300, 300, 500):
            asked.append(n)
            yield Stretch(tuple(range(n)))

    sizes = [(sum(map(len, chunk)), len(asked)) for chunk in stretch.chunks(stretches(), 512)]
    assert sizes == [(512, 2), (512, 3), (76, 3)]


def test_wide_models_read_less_at_once():
    assert [stretch.chunk_size(d) for d in (64, 1024, 2048, 2560, 4096, 8192, 1 << 21)] == [
        512,
        512,
        512,
        256,
        256,
        128,
        1,
    ]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("small", [False, True])
def test_a_live_frame_takes_one_forward(variant, small, monkeypatch):
    """But where the decoder is so small that one native call each for its word and its tokens are sooner."""
    monkeypatch.setattr(stretch, "SMALL", 512 if small else 0)
    session, calls = Session(tiny(variant)), list[int]()
    forward = Decoder.forward

    def counted(self, x, *more, **options):
        calls.append(x.shape[1])
        return forward(self, x, *more, **options)

    monkeypatch.setattr(Decoder, "forward", counted)
    before = 0
    for i in range(4):
        session.push(Frame(picture(i, 128, 128), t=i / 2, index=i))
        assert len(calls) <= before + 1 + small
        before = len(calls)
    assert sum(calls) == session.position
    assert max(calls[-2:]) <= TOKENS if small else max(calls) > TOKENS


@pytest.mark.parametrize("name", ["pebble", "pebble/transformer"])  # trained: half a character would be kept back
def test_states_that_an_answer_holds(name):
    """At the turn's end and behind the newest token; in a forward one more. A large one is 50 MB."""

    def states() -> set[int]:
        gc.collect()
        return {id(thing.leaves) for thing in gc.get_objects() if type(thing) is State and thing.position[0]}

    others, session = states(), Session(load_model(name))
    session.push("one two three")
    most = max(len(states() - others) for _ in session.ask("Count to three.", max_tokens=6))
    assert 0 < most <= 2
