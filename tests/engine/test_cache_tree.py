"""The radix tree by itself: it gives what was read, and its bytes are those of its tensors, within the budget."""

from __future__ import annotations

import itertools
from zlib import crc32

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.engine.cache.budget import Budget
from fluvial.engine.cache.chain import Chain
from fluvial.engine.cache.media import RECORD, Media
from fluvial.engine.cache.node import NODE, SYMBOL
from fluvial.engine.cache.tree import Tree
from fluvial.engine.media import Facts
from fluvial.models.state import State
from fluvial.models.tape import Tape

WIDTH, VOCAB = 5, 7
KEYS = [(("weights", name), ("plugins", "")) for name in "ab"]
KINDS = ("rows", "both", "fixed")


def value(key, read: list) -> torch.Tensor:
    """[WIDTH] numbers that depend on all that was read."""
    return torch.tensor([crc32(repr((key, read, i)).encode()) % 1000 for i in range(WIDTH)], dtype=torch.float32)


def state_of(key, kind: str, read: list) -> State:
    """The state behind `read`, a flat list of what stands at each position."""
    rows = [value(key, read[: n + 1]) for n in range(len(read))]
    k = torch.stack(rows)[None, None] if rows else torch.zeros(1, 1, 0, WIDTH)
    leaves = {"0.kv": Tape.of(k, k + 1, (len(read),))} if kind != "fixed" else {}
    leaves |= {"1.S": value(key, read)[None]} if kind != "rows" else {}
    shift = sum(isinstance(symbol, str) for symbol in read)
    return State(leaves, (len(read),), "model", (-shift,) if shift else ())


class Reader:
    """A chain with all that it has read; a medium takes three positions."""

    def __init__(self, key, kind: str) -> None:
        self.key, self.kind, self.read, self.chain = key, kind, [], Chain(key, "")

    def on(self, symbols: list) -> None:
        for text, run in itertools.groupby(symbols, lambda symbol: isinstance(symbol, int)):
            for part in [list(run)] if text else [[symbol] for symbol in run]:
                self.read += part if text else part * 3
                state = self.state
                self.chain = self.chain.read(part, "", len(self.read), state.shift)

    @property
    def state(self) -> State:
        return state_of(self.key, self.kind, self.read)


def held(tree: Tree, media: Media) -> int:
    """Bytes that are really there: every block of memory once, and the bookkeeping."""
    blocks, rest = {}, 0
    tensors = []
    for node in tree.nodes():
        tensors += [t for pair in node.rows.values() for t in pair]
        if node.point is not None:
            tensors += [node.point.logits, *node.point.leaves.values()]
        rest += NODE + SYMBOL * len(node.label)
    for record in media.records.values():
        tensors += [x for x, _ in record.steps or ()]
        rest += RECORD
    for tensor in tensors:
        blocks[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(blocks.values()) + rest


symbols = st.lists(st.one_of(st.integers(0, 1), st.sampled_from(["medium x", "medium y"])), max_size=12)
actions = st.tuples(st.integers(0, 1), st.booleans(), symbols, symbols)


@settings(max_examples=100)
@given(
    kind=st.sampled_from(KINDS),
    limit=st.sampled_from([3_000, 12_000, 40_000, 10**7]),
    work=st.lists(actions, max_size=14),
    sizes=st.lists(st.integers(1, 4000), max_size=4),
)
def test_whatever_happens_it_gives_what_was_read_and_stays_within_its_bytes(kind, limit, work, sizes):
    budget = Budget(limit)
    tree, media = Tree(budget), Media(budget, 2.0)
    stored = iter(sizes)
    for model, fork, first, then in work:
        reader = Reader(KEYS[model], kind)
        reader.on(first)
        if first:
            tree.keep(reader.chain, reader.state, torch.zeros(VOCAB))
        if fork:
            reader.on(then)
            if reader.read:
                tree.keep(reader.chain, reader.state, torch.ones(VOCAB))
        elif then:
            found = tree.find(reader.chain, then, reader.state)
            assert 0 <= found.count <= found.shared <= len(then)
            assert (found.state is None) == (found.count == 0)
            assert found.why or found.count >= len(then) - 1
            if found.state is not None:
                reader.on(then[: found.count])
                expected = reader.state
                assert found.state.position == expected.position and found.state.shift == expected.shift
                assert tuple(s for run in found.runs for s in run.symbols) == tuple(then[: found.count])
                assert not found.runs or (found.runs[-1].end, found.runs[-1].shift) == (
                    len(reader.read),
                    expected.shift,
                )
                if kind != "fixed":
                    for a, b in zip(found.state.leaves["0.kv"].rows, expected.leaves["0.kv"].rows, strict=True):
                        assert torch.equal(a, b)
                if kind != "rows":
                    assert torch.equal(found.state.leaves["1.S"], expected.leaves["1.S"])
        if (size := next(stored, None)) is not None and budget.reserve(4 * size):
            facts = Facts("", "", "", 1, size, "")
            media.put(f"m{size}", facts, ((torch.zeros(size), None),), 4 * size)
        assert budget.used == held(tree, media) <= budget.peak <= limit
    assert budget.reserve(limit)
    assert not list(tree.nodes()) and not media.records


def test_what_is_used_stays_and_what_saves_little_goes():
    budget = Budget(60_000)
    tree, media = Tree(budget), Media(budget, 1.0)
    prompt = Reader(KEYS[0], "both")
    prompt.on([0, 1] * 100)
    tree.keep(prompt.chain, prompt.state, torch.zeros(VOCAB))
    for other in range(100):
        reader = Reader(KEYS[0], "both")
        reader.on([other + 2] * 20)
        tree.keep(reader.chain, reader.state, torch.zeros(VOCAB))
        tree.find(Chain(KEYS[0], ""), [0, 1] * 100, prompt.state)
        assert held(tree, media) == budget.used <= 60_000
    assert budget.evicted > 50
    assert tree.find(Chain(KEYS[0], ""), [0, 1] * 100 + [5], prompt.state).count == 200
    assert tree.find(Chain(KEYS[0], ""), [2] * 20, prompt.state).count == 0


def test_a_state_that_does_not_fit_is_not_kept():
    tree = Tree(Budget(4_000))
    reader = Reader(KEYS[0], "rows")
    reader.on([0, 1] * 200)
    assert not tree.keep(reader.chain, reader.state, torch.zeros(VOCAB))
    assert tree.budget.used == 0
