"""A long stream costs what a short one does: bytes of state, Python's objects, resident memory."""

from __future__ import annotations

import gc
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from fluvial.encoders.frame import Frame
from fluvial.engine.engine import Engine
from fluvial.engine.measure import decoder_of, grows, over_frames, over_tokens, resident_bytes
from fluvial.engine.model import load_model
from fluvial.engine.recall.filler import sentence
from fluvial.engine.snapshot import Snapshot
from tests.engine.tiny import VARIANTS, write_model

TOKENS, FRAMES, STEPS = 20_000, 100, 10
SLACK = 24 << 20  # bytes by which the allocator may differ


def test_twenty_thousand_tokens_and_a_hundred_frames_leave_no_trace(tmp_path: Path) -> None:
    engine, rng = Engine(load_model(write_model(tmp_path, "delta"))), np.random.default_rng(1)
    held: list[tuple[int, ...]] = []
    objects, resident = [], []
    with engine.live(overflow="block") as live:
        for step in range(STEPS):
            for i in range(FRAMES // STEPS):
                rgb = rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1)
                live.push(Frame(rgb, step * FRAMES / STEPS + i))
            while live.flush().tokens < TOKENS * (step + 1) // STEPS:
                live.push("".join(sentence(rng) for _ in range(60)))
            stats = live.flush()
            held.append((stats.state_bytes, stats.tape_bytes, *_lengths(live.fork().snapshot())))
            gc.collect()
            objects.append(len(gc.get_objects()))
            resident.append(resident_bytes())
        assert stats.frames == FRAMES and stats.tokens >= TOKENS and not stats.dropped
    assert len(set(held[1:])) == 1, held
    assert objects[-1] - objects[1] < 200, objects
    assert resident[-1] - resident[1] < SLACK, resident


def _lengths(now: Snapshot) -> tuple[int, ...]:
    return (*(len(part) for part in (now.messages, now.open_turn, now.fed, now.media, now.ids, now.waiting)),)


@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_is_measured_at_doublings(variant: str, tmp_path: Path) -> None:
    write_model(tmp_path, variant)
    decoder, model = decoder_of(str(tmp_path))
    points = list(over_tokens(decoder, 1100))
    assert [point.tokens for point in points] == [512, 1024, 1100]
    sizes = {point.state_bytes + point.tape_bytes for point in points}
    assert (len(sizes) > 1) == grows(decoder) == (variant in ("hybrid", "transformer"))
    assert all(point.us_per_token > 0 and point.resident_bytes > 1 << 20 for point in points)
    assert model is not None
    films = [asdict(point) for point in over_frames(model, 5)]
    assert [film["frames"] for film in films] == [1, 2, 4, 5]
