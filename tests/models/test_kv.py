"""KV modes: a window is constant, and exact while it suffices; int8 rows are close; splits, forks and files agree."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.models import kv
from fluvial.models.state import State
from tests.models.zoo import decoder, distance, gap, inputs

GROWING, MODES = ("transformer", "delta_hybrid", "scaled_hybrid"), ("int8", "window:16")


def kept(kind: str, mode: str, dtype: torch.dtype = torch.float64):
    model = copy.deepcopy(decoder(kind, dtype))
    model.keep_rows(mode)
    model.fingerprint()
    return model


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(GROWING),
    st.sampled_from(["int8", "window:16"]),
    st.lists(st.integers(1, 14), min_size=2, max_size=5),
)
def test_any_split_gives_the_same(kind: str, mode: str, splits: list[int]):
    model, x, state, outputs, at = kept(kind, mode), inputs(1, sum(splits), 3), None, [], 0
    whole, end = model(x)
    for n in splits:
        y, state = model(x[:, at : at + n], state)
        outputs.append(y)
        at += n
    assert gap(torch.cat(outputs, 1), whole) < 1e-9 and distance(state, end) < 1e-9


@pytest.mark.parametrize("kind", GROWING)
def test_a_window_is_exact_while_it_suffices_and_constant_for_ever(kind: str):
    exact, bounded, x = kept(kind, "exact"), kept(kind, "window:16"), inputs(1, 200, 5)
    assert gap(bounded(x[:, :16])[0], exact(x[:, :16])[0]) < 1e-12
    assert gap(bounded(x)[0], exact(x)[0]) > 1e-3
    empty, early, late = bounded.init_state(), bounded(x[:, :20])[1], bounded(x)[1]
    assert empty.nbytes() == early.nbytes() == late.nbytes() and late.nbytes("tape") == 0
    assert exact(x)[1].nbytes("tape") > 0


@pytest.mark.parametrize("kind", GROWING)
def test_int8_rows_are_close_and_small(kind: str):
    exact, low, x = kept(kind, "exact"), kept(kind, "int8"), inputs(1, 600, 6)
    assert 0 < gap(low(x)[0], exact(x)[0]) < 0.03
    rows = low(x)[1].nbytes("tape") / exact(x)[1].nbytes("tape")
    d = next(leaf for leaf in exact.init_state().leaves.values() if hasattr(leaf, "rows")).rows[0].shape[3]
    assert rows == pytest.approx((d + 2) / (8 * d), rel=0.01)  # fp64 rows


@pytest.mark.parametrize("mode", MODES)
def test_a_journal_a_fork_and_a_file_keep_the_rows(mode: str, tmp_path: Path):
    model, x = kept("transformer", mode), inputs(1, 40, 7)
    _, state = model(x[:, :25])
    _, journal = model(x[:, 25:33], state, journal=True)
    assert distance(journal.commit(5), model(x[:, 25:30], state)[1]) < 1e-9
    state.save(tmp_path / "a.state")
    restored = State.restore(tmp_path / "a.state", model=model.fingerprint())
    assert torch.equal(model(x[:, 25:], restored)[0], model(x[:, 25:], state)[0])
    with pytest.raises(IntegrityError):
        kept("transformer", "exact")(x[:, 25:], restored)


def test_what_cannot_be_kept():
    for wrong in ("int4", "window", "window:0", "window:-3"):
        with pytest.raises(UsageError, match="KV mode"):
            decoder("transformer").keep_rows(wrong)
    with pytest.raises(UnsupportedError, match="constant memory"):
        decoder("mamba2").keep_rows("int8")


@given(st.integers(0, 10**6), st.floats(-30, 30))
@settings(max_examples=60, deadline=None)
def test_rows_survive_being_packed_twice(seed: int, size: float):
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed)) * 10**size
    rows[0] = 0
    rows = rows.clamp(-60_000 * 127, 60_000 * 127)
    once = kv.decode(kv.encode(rows), torch.float32)
    assert torch.isfinite(once).all()
    assert torch.equal(kv.decode(kv.encode(once), torch.float32), once)
    assert ((once - rows).abs() <= rows.abs().amax(-1, keepdim=True) / 127 * 0.51 + 1e-5).all()
