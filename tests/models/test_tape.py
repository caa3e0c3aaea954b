"""Tapes as values: whatever forks do, each sees its own rows; and a fork holds what it adds, not what it shares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fluvial.models.tape import CLEAR, Tape

H, D = 2, 3


def rows(n: int, seed: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    k = torch.randn(batch, H, n, D, generator=torch.Generator().manual_seed(seed))
    return k, -k


def start(batch: int = 1) -> Tape:
    return Tape.empty(batch, H, D, D, dtype=torch.float32, device=torch.device("cpu"))


@torch.no_grad()
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40), st.booleans(), st.booleans()), max_size=40))
def test_every_fork_holds_its_own_rows(steps: list[tuple[int, int, bool, bool]]):
    """A step goes on from any earlier tape, with or without a provisional look first; some are forgotten."""
    tapes, truths = [start()], [torch.zeros(1, H, 0, D)]
    for seed, (source, n, looks, forgets) in enumerate(steps):
        if forgets and len(tapes) > 1:
            del tapes[source % len(tapes)], truths[source % len(truths)]
        at = source % len(tapes)
        k, v = rows(n, seed)
        whole = torch.cat([truths[at], k], 2)
        if looks:
            seen_k, seen_v = tapes[at].peek(k, v)
            assert torch.equal(seen_k, whole) and torch.equal(seen_v, -whole)
        kept = n if seed % 3 else n // 2  # of a provisional forward often a part only
        tapes.append(tapes[at].append(k, v, (kept,)))
        truths.append(whole[:, :, : truths[at].shape[2] + kept])
    for tape, truth in zip(tapes, truths, strict=True):
        assert tape.lengths == (truth.shape[2],)
        assert torch.equal(tape.rows[0], truth) and torch.equal(tape.rows[1], -truth)


@torch.no_grad()
def test_rows_of_a_batch_may_part_after_a_fork():
    k, v = rows(50, 1, batch=2)
    tape = start(2).append(k, v, (50, 50))
    more_k, more_v = rows(4, 2, batch=2)
    first = tape.append(more_k, more_v, (4, 4))
    assert first.lengths == (54, 54)
    ragged = tape.append(more_k, more_v, (1, 3))  # the second to go on: shares the fifty
    assert ragged.lengths == (51, 53)
    next_k, next_v = rows(2, 3, batch=2)
    for fork in (ragged, ragged.append(next_k, next_v, (0, 1))):
        for b, n in enumerate(fork.lengths):
            wanted = torch.cat([k[b], more_k[b, :, : (1, 3)[b]], next_k[b]], 1)[:, :n]
            assert torch.equal(fork.rows[0][b, :, :n], wanted)


@torch.no_grad()
def test_a_thousand_forks_of_a_long_tape_hold_what_they_add():
    k, v = rows(100_000, 1)
    trunk = Tape.of(k, v, (100_000,))
    added = rows(20, 2)
    forks = [trunk.append(*added, (20,)) for _ in range(1000)]
    together = {address: n for fork in forks for address, n in fork.storages().items()}
    row = 2 * H * D * 4
    shared = 100_000 * row
    assert sum(together.values()) <= 1.51 * shared + 1000 * 32 * row  # the first one grows the trunk's own store
    assert all(fork.lengths == (100_020,) for fork in forks)


@torch.no_grad()
def test_a_fork_that_goes_on_for_long_makes_the_rows_its_own():
    trunk = Tape.of(*rows(1000, 1), (1000,))
    first = trunk.append(*rows(1, 2), (1,))
    fork, seed = trunk, 3
    while len(fork.storages()) != 2 or fork is trunk:
        fork, seed = fork.append(*rows(10, seed), (10,)), seed + 1
        assert seed < 20
    assert 1000 // 16 <= fork.lengths[0] - 1000 <= 1000 // 16 + 20
    assert not fork.storages().keys() & trunk.storages().keys() and first.lengths == (1001,)


@torch.no_grad()
def test_forks_of_forks_read_few_stores():
    tape, truth, others = start(), torch.zeros(1, H, 0, D), []
    for seed in range(60):
        k, v = rows(5, seed)
        others.append(tape.append(-k, v, (5,)))  # another goes first
        tape, truth = tape.append(k, v, (5,)), torch.cat([truth, k], 2)
        assert len(tape.storages()) <= 2 * 9
    assert torch.equal(tape.rows[0], truth)


@torch.no_grad()
def test_rows_of_a_fork_that_is_gone_are_scratch_again():
    tape = start().append(*rows(10, 1), (10,)).append(*rows(1, 2), (1,))
    for seed in range(40):
        drafted = tape.append(*rows(3, seed), (3,)).append(*rows(3, seed), (3,))
        assert drafted._store is tape._store
        del drafted
    assert tape.storages() == tape.append(*rows(2, 9), (2,)).storages()


@torch.no_grad()
def test_two_lengths_of_one_look_share_their_rows():
    tape, (k, v) = start().append(*rows(10, 1), (10,)), rows(5, 2)
    tape.peek(k, v)
    longer, shorter = tape.append(k, v, (5,)), tape.append(k, v, (3,))
    assert longer._store is shorter._store is tape._store
    other = shorter.append(*rows(1, 3), (1,))  # the longer one still needs its rows
    assert torch.equal(longer.rows[0][:, :, 10:], k) and torch.equal(other.rows[0][:, :, 13:], rows(1, 3)[0])


@pytest.mark.parametrize("int8", [False, True])
def test_what_may_be_read_holds_numbers_and_the_rest_is_left_alone(monkeypatch, int8):
    """A store grows by half; rows that nobody came near take no memory, and those that a mask hides are no NaN."""
    new_empty = Tensor.new_empty
    fill = 77 if int8 else torch.nan
    monkeypatch.setattr(Tensor, "new_empty", lambda self, *shape, **k: new_empty(self, *shape, **k).fill_(fill))
    tape = Tape.empty(2, H, 16, 16, dtype=torch.float32, device=torch.device("cpu"), int8=int8)
    for n in [(3, 1), (200, 7), (60, 0), (1, 1), (500, 9), (40, 1)]:
        new = torch.randn(2, H, max(n), 16)
        k, v = tape.peek(new, new)
        assert torch.isfinite(k).all() and torch.isfinite(v).all()
        tape = tape.append(new, new, n)
        stored, longest = tape._store.k, max(tape.lengths)
        assert torch.isfinite(tape.rows[0]).all() and (stored[:, :, :longest] != 77).any()
        untouched = stored[:, :, -(-longest // CLEAR) * CLEAR :]
        assert bool((untouched == 77).all() if int8 else untouched.isnan().all())
    assert tape._store.k.shape[2] - longest > 200
