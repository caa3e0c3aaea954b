"""Tapes of several layers that move on together are the same values as tapes that move one by one."""

from __future__ import annotations

import gc

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.models.tape import Tape
from fluvial.models.tapes import Tapes
from tests.models.test_tape import rows, start

LAYERS = 2


def layers(n: int, seed: int) -> list[torch.Tensor]:
    """New rows [1, H, n, D] of each layer."""
    return [rows(n, LAYERS * seed + i)[0] for i in range(LAYERS)]


def one_by_one(tapes: Tapes | list[Tape]) -> list[Tape]:
    return list(tapes.all()) if isinstance(tapes, Tapes) else tapes


def native(tapes: Tapes, new: list[torch.Tensor], n: int) -> Tapes | None:
    """As a recorded forward does it; None where it would not run."""
    ready = tapes.ready(n)
    if ready is None:
        return None
    at = slice(ready.lengths[0], ready.lengths[0] + n)
    for store, k in zip(ready._stores, new, strict=True):
        store.k[:, :, at], store.v[:, :, at] = k, -k
    return ready.claim(n)


@torch.no_grad()
@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 40), st.booleans(), st.booleans()), max_size=40))
def test_they_are_values_however_they_go_on(steps: list[tuple[int, int, bool, bool]]) -> None:
    """A step goes on from any earlier ones, together or one by one; some are forgotten."""
    held: list[Tapes | list[Tape]] = [[start() for _ in range(LAYERS)]]
    truths = [[torch.zeros_like(k) for k in layers(0, 0)]]
    for seed, (source, n, together, forgets) in enumerate(steps):
        if forgets and len(held) > 1:
            del held[source % len(held)], truths[source % len(truths)]
        before, new = held[source % len(held)], layers(n, seed)
        truths.append([torch.cat([old, k], 2) for old, k in zip(truths[source % len(truths)], new, strict=True)])
        if together:
            given = before if isinstance(before, Tapes) else Tapes.of([tape.ready(n) for tape in before])
            if given is not None and (after := native(given, new, n)) is not None:
                held.append(after)
                continue
        held.append([tape.append(k, -k, (n,)) for tape, k in zip(one_by_one(before), new, strict=True)])
    for tapes, truth in zip(held, truths, strict=True):
        for tape, wanted in zip(one_by_one(tapes), truth, strict=True):
            assert torch.equal(tape.rows[0], wanted) and torch.equal(tape.rows[1], -wanted)


@torch.no_grad()
def test_who_is_not_made_into_tapes_holds_its_rows_too() -> None:
    first = Tapes.of([start().append(k, -k, (5,)).ready(1) for k in layers(5, 1)])
    assert first is not None
    second = native(first, layers(1, 2), 1)
    assert second is not None
    third = first.ready(1)  # goes on elsewhere
    assert third is None
    wanted = [torch.cat(parts, 2) for parts in zip(layers(5, 1), layers(1, 2), strict=True)]
    for tape, other, rows_of in zip(second.all(), first.all(), wanted, strict=True):
        other.append(9 + rows_of[:, :, :1], -rows_of[:, :, :1], (1,))
        assert torch.equal(tape.rows[0], rows_of)


@torch.no_grad()
def test_rows_of_those_that_are_gone_are_scratch_again() -> None:
    first = Tapes.of([start().append(k, -k, (5,)).ready(9) for k in layers(5, 1)])
    assert first is not None
    stores = [tape.stores[0].data_ptr() for tape in first.all()]
    for seed in range(3):
        after = native(first, layers(1, seed), 1)
        assert after is not None and [tape.stores[0].data_ptr() for tape in after.all()] == stores
        del after
        gc.collect()


@torch.no_grad()
def test_tapes_of_different_lengths_are_not_taken_together() -> None:
    short, long = (Tape.of(k, -k, (n,)) for n, k in ((3, rows(3, 1)[0]), (4, rows(4, 2)[0])))
    assert Tapes.of([short, long]) is None and Tapes.of([short, short]) is not None


@torch.no_grad()
def test_a_store_that_grew_is_found_where_it_lies_now() -> None:
    tapes = [start().append(k, -k, (5,)).ready(1) for k in layers(5, 1)]
    found = Tapes.of(tapes)
    assert found is not None
    for tape in tapes:
        tape.ready(2000)
    again = found.ready(1)
    assert again is not None
    assert again.places.addresses == tuple(rows.data_ptr() for tape in tapes for rows in tape.stores)
