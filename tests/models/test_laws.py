"""The laws of the house, over every registered mixer and over hybrids."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.adapters.errors import IntegrityError, UsageError
from fluvial.models.mixer import kinds
from fluvial.models.state import State
from fluvial.models.tape import Tape
from tests.models.zoo import (
    BLOCKS,
    NAMES,
    RECURRENT,
    decoder,
    distance,
    gap,
    inputs,
    leaf_tensors,
    media_positions,
    row_of,
)

EXACT, CLOSE = 1e-10, 1e-5
each_model = pytest.mark.parametrize("name", NAMES)


def test_the_zoo_holds_every_registered_mixer():
    assert {block.kind for blocks in BLOCKS.values() for block in blocks} == set(kinds())


@each_model
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, EXACT), (torch.float32, CLOSE)])
@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_any_split_gives_the_same_outputs_and_state(name, dtype, limit, sizes, batch, seed):
    model, x = decoder(name, dtype), inputs(batch, sum(sizes), seed, dtype)
    whole, end = model(x)
    state, parts = None, []
    for chunk in x.split(sizes, 1):
        part, state = model(chunk, state)
        parts.append(part)
    assert gap(torch.cat(parts, 1), whole) <= limit
    assert distance(state, end) <= limit


@each_model
def test_single_steps_equal_one_forward(name):
    model, x = decoder(name), inputs(2, 70, 5)
    whole, end = model(x)
    state, parts = None, []
    for t in range(70):
        part, state = model(x[:, t : t + 1], state)
        parts.append(part)
    assert gap(torch.cat(parts, 1), whole) <= EXACT
    assert distance(state, end) <= EXACT


@each_model
@settings(max_examples=30, deadline=None)
@given(
    past=st.integers(0, 20),
    tokens=st.integers(1, 70),
    accepts=st.lists(st.tuples(*[st.floats(0, 1)] * 3), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_commit_is_the_state_after_a_prefix_of_each_row(name, past, tokens, accepts, seed):
    model, x = decoder(name), inputs(3, past + tokens, seed)
    start = model(x[:, :past])[1] if past else model.init_state(3)
    hidden, journal = model(x[:, past:], start, journal=True)
    assert gap(hidden, model(x)[0][:, past:]) <= EXACT
    for shares in accepts:  # several commits of one journal, in any order
        n = [round(share * tokens) for share in shares]
        committed = journal.commit(n)
        for b, count in enumerate(n):
            row = x[b : b + 1]
            alone = model(row[:, : past + count])[1] if past + count else model.init_state(1)
            assert distance(row_of(committed, b), alone) <= EXACT
    assert distance(start, model(x[:, :past])[1] if past else model.init_state(3)) == 0


@each_model
def test_thousands_of_accept_patterns(name):
    """Speculation's own loop: propose T tokens, accept some, go on from there; compared with one plain forward."""
    model, draw = decoder(name), torch.Generator().manual_seed(1)
    x = inputs(1, 2400, 8)
    whole, end = model(x)
    state, at, rounds = None, 0, 0
    while at < x.shape[1]:
        tokens = min(int(torch.randint(1, 9, (), generator=draw)), x.shape[1] - at)
        hidden, journal = model(x[:, at : at + tokens], state, journal=True)
        accepted = int(torch.randint(0, tokens + 1, (), generator=draw))
        assert gap(hidden[:, :accepted], whole[:, at : at + accepted]) <= EXACT
        state, at, rounds = journal.commit(accepted), at + accepted, rounds + 1
    assert rounds > 500
    assert distance(state, end) <= EXACT


@each_model
@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 45), min_size=2, max_size=4), more=st.integers(1, 9), seed=st.integers(0, 99))
def test_rows_of_different_lengths_equal_each_alone(name, lengths, more, seed):
    model, width = decoder(name), max(*lengths, 1)
    x = inputs(len(lengths), width + more, seed)
    padded = x[:, :width].clone()
    for b, n in enumerate(lengths):
        padded[b, n:] = float("nan")  # padding never touches a state
    hidden, state = model(padded, lengths=lengths)
    following, end = model(x[:, width:], state)
    for b, n in enumerate(lengths):
        row = torch.cat([x[b : b + 1, :n], x[b : b + 1, width:]], 1)
        alone, alone_end = model(row)
        assert gap(hidden[b, :n], alone[0, :n]) <= EXACT
        assert gap(following[b], alone[0, n:]) <= EXACT
        assert distance(row_of(end, b), alone_end) <= EXACT


@each_model
def test_a_ragged_journal_commits_each_row(name):
    model, x, lengths = decoder(name), inputs(3, 20, 4), (20, 7, 0)
    _, journal = model(x, lengths=lengths, journal=True)
    state = journal.commit((11, 7, 0))
    for b, n in enumerate((11, 7, 0)):
        alone = model(x[b : b + 1, :n])[1] if n else model.init_state(1)
        assert distance(row_of(state, b), alone) <= EXACT
    with pytest.raises(UsageError, match="Cannot commit"):
        journal.commit((11, 8, 0))


@each_model
def test_a_journal_costs_at_most_one_state_and_rows(name):
    model = decoder(name)
    start = model(inputs(1, 9, 1))[1]

    def size(tokens: int) -> int:
        return model(inputs(1, tokens, 2), start, journal=True)[1].nbytes

    per_token = (size(128) - size(64)) // 64
    assert size(256) - size(128) == 128 * per_token  # rows only, never a state a token
    assert size(64) - 64 * per_token <= start.nbytes("recurrent")
    state_bytes = start.nbytes("recurrent") or per_token
    assert name == "transformer" or per_token < state_bytes


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_state_bytes_do_not_depend_on_the_position(name):
    model, state = decoder(name, torch.float32), None
    x = inputs(1, 1000, 3, torch.float32)
    sizes = {}
    for tokens in range(1000, 100_001, 1000):
        _, state = model(x, state)
        sizes[tokens] = state.nbytes()
    assert state.position == (100_000,)
    assert sizes[1000] == sizes[100_000] == state.nbytes("recurrent")
    assert all(tensor.isfinite().all() for tensor in leaf_tensors(state).values())


@each_model
def test_forks_that_diverge_equal_separate_runs(name):
    model, x, y, z = decoder(name), inputs(2, 30, 1), inputs(2, 25, 2), inputs(2, 25, 3)
    root = model(x)[1]
    left, right = root, root.fork()
    for t in range(0, 25, 5):  # interleaved
        left = model(y[:, t : t + 5], left)[1]
        right = model(z[:, t : t + 5], right)[1]
    assert distance(left, model(torch.cat([x, y], 1))[1]) <= EXACT
    assert distance(right, model(torch.cat([x, z], 1))[1]) <= EXACT
    assert distance(root, model(x)[1]) == 0


@each_model
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_saved_states_continue_in_another_process_bit_for_bit(name, dtype, tmp_path: Path):
    model = decoder(name, dtype)
    model.fingerprint()
    x, y = inputs(2, 20, 1, dtype), inputs(2, 5, 2, dtype)
    _, state = model(x, lengths=(20, 13))
    state.save(tmp_path / "state.safetensors")
    hidden, end = model(y, state)
    if dtype == torch.float64 and name == "everything":
        script = (
            "import sys, torch\n"
            "from safetensors.torch import save_file\n"
            "from tests.models.zoo import decoder, inputs, leaf_tensors\n"
            "from fluvial.models.state import State\n"
            f"torch.set_num_threads({torch.get_num_threads()})\n"
            f"model = decoder({name!r}); model.fingerprint()\n"
            "state = State.restore(sys.argv[1] + '/state.safetensors', model=model.fingerprint())\n"
            "hidden, end = model(inputs(2, 5, 2), state)\n"
            "tensors = leaf_tensors(end) | {'hidden': hidden}\n"
            "save_file({n: t.contiguous() for n, t in tensors.items()}, sys.argv[1] + '/end.safetensors')\n"
        )
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, cwd=Path(__file__).parents[2])
        from safetensors.torch import load_file

        other = load_file(tmp_path / "end.safetensors")
        for key, tensor in (leaf_tensors(end) | {"hidden": hidden}).items():
            assert torch.equal(other[key], tensor), key
    restored = State.restore(tmp_path / "state.safetensors", model=model.fingerprint())
    again, again_end = model(y, restored)
    assert torch.equal(again, hidden)
    assert distance(again_end, end) == 0


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    shares=st.tuples(*[st.floats(0, 1)] * 3),
    more=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_media_positions_split_and_commit_anywhere(sizes, shares, more, seed):
    model, tokens = decoder("media_hybrid"), sum(sizes)
    x, positions = inputs(3, tokens + more, seed), media_positions(3, tokens, seed)
    whole, end = model(x[:, :tokens], positions=positions)
    state, parts = None, []
    for chunk, at in zip(x[:, :tokens].split(sizes, 1), positions.split(sizes, 2), strict=True):
        part, state = model(chunk, state, positions=at)
        parts.append(part)
    assert gap(torch.cat(parts, 1), whole) <= EXACT
    assert distance(state, end) <= EXACT
    assert end.rotary == tuple(positions[:, b].max().item() + 1 for b in range(3))
    first = sizes[0]
    start = model(x[:, :first], positions=positions[..., :first])[1]
    rest = tokens - first
    n = [round(share * rest) for share in shares]
    if rest:  # a journal of several rows, each committed to its own prefix
        journal = model(x[:, first:tokens], start, positions=positions[..., first:], journal=True)[1]
        start = journal.commit(n)
    following, last = model(x[:, tokens:], start)  # text: goes on by itself
    for b, count in enumerate(n):
        seen = positions[:, b : b + 1, : first + count]
        after = seen.max() + 1 + torch.arange(more).expand(3, 1, -1)
        row = torch.cat([x[b : b + 1, : first + count], x[b : b + 1, tokens:]], 1)
        alone, alone_end = model(row, positions=torch.cat([seen, after], 2))
        assert gap(following[b], alone[0, first + count :]) <= EXACT
        assert distance(row_of(last, b), alone_end) <= EXACT


def test_a_saved_state_keeps_where_positions_go_on(tmp_path: Path):
    model, x, positions = decoder("media_hybrid"), inputs(2, 30, 4), media_positions(2, 20, 4)
    state = model(x[:, :20], positions=positions)[1]
    assert state.shift and state.fork().shift == state.shift
    state.save(tmp_path / "a.state")
    restored = State.restore(tmp_path / "a.state")
    assert restored.rotary == state.rotary
    assert torch.equal(model(x[:, 20:], restored)[0], model(x[:, 20:], state)[0])
    assert gap(model(x[:, 20:], state)[0], model(x[:, 20:], State(state.leaves, state.position, state.model))[0]) > 1e-3


def test_a_state_is_refused_by_another_model_and_when_damaged(tmp_path: Path):
    model = decoder("gated_delta")
    model.fingerprint()
    state = model(inputs(1, 5, 1))[1]
    path = tmp_path / "a.state"
    state.save(path)
    with pytest.raises(IntegrityError, match="another model"):
        State.restore(path, model="0" * 40)
    with pytest.raises(IntegrityError, match="another model"):
        decoder("mamba2", torch.float32)(inputs(1, 1, 1, torch.float32), state)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match="damaged"):
        State.restore(path)
    with pytest.raises(IntegrityError, match="No saved state"):
        State.restore(tmp_path / "none")
    assert not list(tmp_path.glob("*.tmp"))


def test_forks_of_a_tape_share_rows_until_they_diverge():
    model = decoder("transformer")
    state = model(inputs(1, 300, 1))[1]
    fork = state.fork()
    assert all(fork.leaves[name] is leaf for name, leaf in state.leaves.items())
    tape = state.leaves["0.kv"]
    assert isinstance(tape, Tape)
    after = model(inputs(1, 1, 2), state)[1].leaves["0.kv"]
    assert isinstance(after, Tape)
    assert after.rows[0].data_ptr() == tape.rows[0].data_ptr()  # appended in place
    other = model(inputs(1, 1, 3), fork)[1].leaves["0.kv"]
    assert isinstance(other, Tape)
    assert other.rows[0].data_ptr() != tape.rows[0].data_ptr()  # the second one copies
