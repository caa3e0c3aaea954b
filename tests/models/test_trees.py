"""A forward over a tree: each node equals the plain forward along its root path, and so does every committed state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.models.state import State
from fluvial.models.tree import MOST, Tree
from tests.models.zoo import NAMES, decoder, distance, gap, inputs, media_positions, row_of

EXACT, CLOSE = 1e-10, 1e-5
each_model = pytest.mark.parametrize("name", NAMES)


@st.composite
def trees(draw: st.DrawFn, most: int = 24) -> list[int]:
    """Parents of a random tree: wide ones, deep ones, several children of the root's predecessor."""
    size, deep = draw(st.integers(1, most)), draw(st.booleans())
    low = [max(-1, t - 3) if deep else -1 for t in range(size)]
    return [draw(st.integers(low[t], t - 1)) for t in range(size)]


def paths(parents: list[int]) -> list[list[int]]:
    """The root path of each node."""
    found: list[list[int]] = []
    for t, parent in enumerate(parents):
        found.append([*(found[parent] if parent >= 0 else []), t])
    return found


def leaves(parents: list[int]) -> list[int]:
    return [t for t in range(len(parents)) if t not in parents]


@each_model
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, EXACT), (torch.float32, CLOSE)])
@settings(max_examples=8, deadline=None)
@given(parents=trees(), past=st.integers(0, 20), seed=st.integers(0, 99), data=st.data())
def test_nodes_and_committed_states_equal_their_root_paths(name, dtype, limit, parents, past, seed, data):
    model, x = decoder(name, dtype), inputs(2, past + len(parents), seed, dtype)
    start = model(x[:, :past])[1] if past else model.init_state(2)
    nodes = x[:, past:]
    hidden, journal = model.tree(nodes, parents, start)
    for leaf in leaves(parents):
        path = paths(parents)[leaf]
        alone, end = model(nodes[:, path], start)
        assert gap(hidden[:, path], alone) <= limit
        assert distance(journal.commit(path), end) <= limit
    path = data.draw(st.sampled_from(paths(parents)))  # after the others: commits leave the journal as it was
    assert distance(journal.commit(path), model(nodes[:, path], start)[1]) <= limit
    assert distance(journal.commit([]), start) == 0
    assert distance(start, model(x[:, :past])[1] if past else model.init_state(2)) == 0


@each_model
def test_a_chain_of_any_size_is_a_tree(name):
    model, x = decoder(name), inputs(1, 9 + MOST, 1)
    start = model(x[:, :9])[1]
    hidden, journal = model.tree(x[:, 9:], range(-1, MOST - 1), start)
    alone, end = model(x[:, 9:], start)
    assert gap(hidden, alone) <= EXACT
    assert distance(journal.commit(range(MOST)), end) <= EXACT


@each_model
def test_forwards_go_on_from_committed_paths(name):
    """Speculation's own loop with trees: a path of each tree accepted."""
    model, draw, x = decoder(name), torch.Generator().manual_seed(2), inputs(1, 90, 8)
    whole, end = model(x)
    state, at = None, 0
    while at < x.shape[1]:
        true = min(int(torch.randint(1, 5, (), generator=draw)), x.shape[1] - at)
        wrong = inputs(1, 3, at)
        parents = [*range(-1, true - 1), -1, true - 1, true + 1]  # the text that comes, and three other ideas
        hidden, journal = model.tree(torch.cat([x[:, at : at + true], wrong], 1), parents, state)
        assert gap(hidden[:, :true], whole[:, at : at + true]) <= EXACT
        accepted = int(torch.randint(0, true + 1, (), generator=draw))
        state, at = journal.commit(range(accepted)), at + accepted
    assert distance(state, end) <= EXACT


@each_model
def test_rows_of_different_lengths(name):
    model, x, lengths, parents = decoder(name), inputs(3, 16, 4), (11, 7, 0), [-1, 0, 0, 1, 2]
    start = model(x[:, :11], lengths=lengths)[1]
    hidden, journal = model.tree(x[:, 11:], parents, start)
    path = [0, 2, 4]
    for b, n in enumerate(lengths):
        row = torch.cat([x[b : b + 1, :n], x[b : b + 1, 11:][:, path]], 1)
        alone, end = model(row)
        assert gap(hidden[b : b + 1, path], alone[:, n:]) <= EXACT
        assert distance(row_of(journal.commit(path), b), end) <= EXACT


def test_trees_after_media_rotate_on_from_there():
    model, x, positions = decoder("media_hybrid"), inputs(1, 30, 4), media_positions(1, 25, 4)
    state = model(x[:, :25], positions=positions)[1]
    assert state.shift
    hidden, journal = model.tree(x[:, 25:], [-1, 0, 0, 2, 1], state)
    for path in ([0, 2, 3], [0, 1, 4]):
        alone, end = model(x[:, 25:][:, path], state)
        assert gap(hidden[:, path], alone) <= EXACT
        committed = journal.commit(path)
        assert distance(committed, end) <= EXACT and committed.shift == end.shift


@each_model
def test_a_journal_costs_at_most_one_state_and_rows(name):
    model, start = decoder(name), decoder(name)(inputs(1, 9, 1))[1]

    def size(nodes: int) -> int:
        return model.tree(inputs(1, nodes, 2), [-1, *[0] * (nodes - 1)], start)[1].nbytes

    per_node = (size(32) - size(16)) // 16
    assert size(64) - size(32) == 32 * per_node
    assert size(16) - 16 * per_node <= start.nbytes("recurrent")


def test_what_is_no_tree_or_no_path_is_refused():
    model, x = decoder("gated_delta"), inputs(1, 4, 1)
    for parents, words in (([-1, 1, 0, 0], "no tree"), ([-2, 0, 0, 0], "no tree"), ([], "1 to"), ([-1] * 65, "1 to")):
        with pytest.raises(UsageError, match=words):
            model.tree(x, parents)
    with pytest.raises(UsageError, match="do not fit a tree of 3"):
        model.tree(x, [-1, 0, 1])
    with pytest.raises(UsageError, match="do not fit a tree"):
        model.tree(x[..., :-1], [-1, 0, 1, 2])
    journal = model.tree(x, [-1, 0, 0, 1])[1]
    for path in ([1], [0, 3], [0, 1, 2], [4], [-1], [0, 0]):
        with pytest.raises(UsageError, match="no path"):
            journal.commit(path)
    assert journal.commit([0, 1, 3]).position == (3,)


def test_a_mixer_without_a_form_for_trees_is_named(monkeypatch: pytest.MonkeyPatch):
    model, x = decoder("scaled_hybrid"), inputs(1, 3, 1)
    assert not model.treeless
    monkeypatch.setattr(model.blocks[2].mixer, "trees", False)
    assert model.treeless == {"gated_delta"}
    with pytest.raises(UnsupportedError, match=r"trees in: gated_delta"):
        model.tree(x, [-1, 0, 0])


def test_windows_hold_a_node_and_its_ancestors():
    tree = Tree([-1, 0, 0, 1, -1])
    assert tree.windows(3).tolist() == [[0, 1, 2], [1, 2, 3], [1, 2, 4], [2, 3, 5], [0, 1, 6]]
    assert tree.depth.tolist() == [0, 1, 1, 2, 0]
    assert isinstance(decoder("rwkv7").tree(inputs(1, 5, 1), tree.parents)[1].commit([0, 2]), State)
