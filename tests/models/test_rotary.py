"""Rotary tables of a few tokens, cut from those of a stretch of positions."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.models.rotary import FEW, STRETCH, Scaling, next_tables, rotary_tables

NEAR = st.integers(0, 40).map(lambda i: i + STRETCH - 20)  # where a stretch ends


@given(start=NEAR | st.integers(0, 3_000_000), tokens=st.integers(1, FEW), width=st.sampled_from([2, 6, 64, 128]))
@settings(deadline=None)
def test_tables_cut_from_a_stretch_are_those_of_their_positions(start: int, tokens: int, width: int) -> None:
    positions = torch.arange(start, start + tokens)[None]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for scaling in (None, Scaling("yarn", 4.0, 4096)):
            whole = rotary_tables(positions, width, 1e6, (), scaling).to(dtype)
            cut = next_tables(start, tokens, width, 1e6, scaling, dtype)
            assert all(torch.equal(a, b.transpose(1, 2)) for a, b in zip(cut, whole, strict=True))
