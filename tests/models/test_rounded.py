"""Memories in fewer bits: close to fp32, rounded once a forward, counted, forked, saved and refused like any state."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluvial
from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.engine import state_plugin
from fluvial.models.decoder import Decoder
from fluvial.models.rounded import Rounded
from fluvial.models.state import State, wide
from tests.engine.tiny import write_model
from tests.models.zoo import NAMES, decoder, gap, inputs

WITHOUT = ("transformer", "window", "short_conv")
MODELS = [name for name in NAMES if name not in WITHOUT]
BOUNDS = {"bf16": 2.0**-8, "int8": 1 / (2 * 16 * 126)}  # of a value's, or its row's largest, size
each = pytest.mark.parametrize("name", MODELS)
each_dtype = pytest.mark.parametrize("dtype", BOUNDS)


def kept(name: str, dtype: str) -> Decoder:
    model = copy.copy(decoder(name, torch.float32))
    model.keep(dtype)
    return model


def memories(state: State) -> dict[str, Rounded]:
    return {name: leaf for name, leaf in state.leaves.items() if isinstance(leaf, Rounded)}


def apart(a: State, b: State) -> float:
    """The largest difference of two memories."""
    return max(gap(leaf.values, wide(b.leaves[name])) for name, leaf in memories(a).items())


def same(a: State, b: State) -> bool:
    return all(
        torch.equal(tensor, memories(b)[name].parts[part])
        for name, leaf in memories(a).items()
        for part, tensor in leaf.parts.items()
    )


@each_dtype
@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    size=st.sampled_from([1e-6, 1.0, 1e4]),
    zero=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_come_back_within_a_step(dtype: str, shape: tuple[int, ...], size: float, zero: bool, seed: int) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size
    if zero:
        values[:, 0] = 0
    before = values.clone()
    rounded = Rounded.of(values, dtype)
    assert torch.equal(values, before)
    limit = (values if dtype == "bf16" else values.abs().amax(-1, keepdim=True)).abs() * BOUNDS[dtype]
    assert ((rounded.values - values).abs() <= limit * 1.01).all() and rounded.values.dtype == values.dtype
    assert Rounded.of(values.double(), dtype).values.dtype == torch.float64


@each
@each_dtype
def test_any_split_is_close(name: str, dtype: str) -> None:
    """Law 1 holds up to the rounding at the end of each forward."""
    model, x = kept(name, dtype), inputs(2, 60, 3, torch.float32)
    whole, end = decoder(name, torch.float32)(x)
    for sizes in ([60], [1] * 60, [7, 20, 3, 30]):
        state, parts = None, []
        for chunk in x.split(sizes, 1):
            part, state = model(chunk, state)
            parts.append(part)
        assert gap(torch.cat(parts, 1), whole) <= {"bf16": 0.06, "int8": 0.015}[dtype]
        assert apart(state, end) <= {"bf16": 0.03, "int8": 0.01}[dtype] and state.position == (60, 60)


@each
@each_dtype
def test_a_journal_rounds_what_it_commits(name: str, dtype: str) -> None:
    model, x = kept(name, dtype), inputs(3, 20, 4, torch.float32)
    start = model(x[:, :5])[1]
    journal = model(x[:, 5:], start, journal=True)[1]
    assert same(journal.commit(0), start)
    ragged = journal.commit((9, 0, 15))
    for b, count in enumerate((9, 0, 15)):
        alone = journal.commit(count)
        for leaf_name, leaf in memories(ragged).items():
            assert gap(leaf.values[b], wide(alone.leaves[leaf_name])[b]) <= 1e-2
            if not count:
                before = memories(start)[leaf_name]
                assert all(torch.equal(leaf.parts[part][b], before.parts[part][b]) for part in leaf.parts)
        plain = model(x[:, 5 : 5 + count], start)[1] if count else start
        assert apart(alone, plain) <= 1e-2


@each
def test_bytes(name: str) -> None:
    sizes = {}
    for dtype in ("fp32", "bf16", "int8"):
        state = kept(name, dtype)(inputs(1, 9, 1, torch.float32))[1]
        held = {n: leaf.nbytes for n, leaf in state.leaves.items() if n.endswith((".S", ".h"))}
        assert held and sum(held.values()) <= state.nbytes("recurrent")
        sizes[dtype] = sum(held.values())
        rest = state.nbytes("recurrent") - sizes[dtype]
        assert rest == decoder(name, torch.float32).init_state().nbytes("recurrent") - sizes["fp32"]
        assert kept(name, dtype).init_state().nbytes("recurrent") == state.nbytes("recurrent")
    assert 2 * sizes["bf16"] == sizes["fp32"] and sizes["int8"] < sizes["bf16"]


def test_int8_takes_three_eighths_and_a_scale_per_row() -> None:
    rounded = Rounded.of(torch.randn(1, 4, 128, 128), "int8")
    assert rounded.nbytes == 4 * 128 * (128 + 128 // 2 + 2)


def test_error_feedback_lets_slow_memories_move() -> None:
    """A memory that gains a two-hundredth of a code a step stands still in eight bits alone."""
    gain, exact = 127 / 200, torch.full((1, 1, 8), 100.0)
    exact[..., 0] = 127.0
    memory, alone = Rounded.of(exact, "int8"), exact.clone()
    for _ in range(40):
        step = torch.tensor([0.0] + [gain / 10] * 7)
        exact = exact + step
        memory = Rounded.of(memory.values + step, "int8")
        alone = (alone + step).round()
    assert (alone[..., 1:] == 100).all() and gap(memory.values[..., 1:], exact[..., 1:]) < 2e-3


@each_dtype
def test_forks_and_files(dtype: str, tmp_path: Path) -> None:
    model, other = kept("everything", dtype), kept("everything", "int8" if dtype == "bf16" else "bf16")
    state = model(inputs(2, 12, 1, torch.float32), lengths=(12, 7))[1]
    fork, more = state.fork(), inputs(2, 5, 2, torch.float32)
    hidden, end = model(more, state)
    state.save(tmp_path / "a.state")
    for again in (fork, State.restore(tmp_path / "a.state", model=state.model)):
        assert again.dtype == dtype and again.nbytes("recurrent") == state.nbytes("recurrent") and same(again, state)
        assert torch.equal(model(more, again)[0], hidden) and same(model(more, again)[1], end)
        for refusing in (other, decoder("everything", torch.float32)):
            with pytest.raises(IntegrityError, match=f"kept in {dtype}"):
                refusing(more, again)
    with pytest.raises(IntegrityError, match=f"keeps {dtype}"):
        model(more, decoder("everything", torch.float32).init_state(2))


def test_what_cannot_be_kept_so() -> None:
    for name in WITHOUT:
        with pytest.raises(UnsupportedError, match="no memory"):
            kept(name, "int8")
        assert kept(name, "fp32").init_state().dtype == "fp32"
    with pytest.raises(UsageError, match="fp32, bf16, int8"):
        kept("mamba", "fp16")


@pytest.mark.parametrize("variant", ["delta", "rwkv7"])
def test_loaded_explained_planned_and_saved(variant: str, tmp_path: Path) -> None:
    from fluvial.engine.plan import plan

    folder = write_model(tmp_path, variant)
    engine, usual = fluvial.load(folder, state_dtype="int8"), fluvial.load(folder)
    about, before = engine.explain(), usual.explain()
    assert (about["state_dtype"], before["state_dtype"]) == ("int8", "fp32")
    assert about["state_bytes"] == plan(folder, state_dtype="int8").state < before["state_bytes"] / 2
    leaves = state_plugin.recurrent(engine.model.decoder)
    assert leaves.keys() == state_plugin.recurrent(usual.model.decoder).keys()
    learned = {name: torch.randn_like(leaf) for name, leaf in leaves.items()}
    state_plugin.write(tmp_path / "begin.safetensors", learned)
    engine.plugins.load(tmp_path / "begin.safetensors")
    session, plain = engine.session(plugin="begin"), engine.session()
    assert apart(session.snapshot().feed.state, plain.snapshot().feed.state) > 0.1
    session.push("A door.")
    words = [event.text for event in session.fork().ask("What is it?", max_tokens=3)]
    session.save(tmp_path / "s")
    again = engine.load_session(tmp_path / "s")
    assert [event.text for event in again.ask("What is it?", max_tokens=3)] == words
    with pytest.raises(IntegrityError, match="state_dtype 'int8'"):
        usual.load_session(tmp_path / "s")
