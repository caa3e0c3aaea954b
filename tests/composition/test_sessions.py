"""The composition matrix of sessions: {architecture} x {format} x {plugin} x {cache} x {draft} x {input} x {way} x
{kv}, by pairs and at random: greedy answers and memory are those of the plain run; what cannot be is refused by name.

FLUVIAL_MATRIX=10 draws ten times as many random cells (`make matrix`).
"""

from __future__ import annotations

import copy
import itertools
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from fluvial.adapters.errors import UnsupportedError
from fluvial.cli.composition import lines
from fluvial.engine.drafts import drafting
from fluvial.engine.matrix import ARCHITECTURES, FEATURES, refusal
from fluvial.engine.session import Session
from tests.composition import checkpoints
from tests.composition.cells import AXES, PUSHED, Cell, composed, drawn, met, pairwise, plain, refused, talk
from tests.models.zoo import distance, gap

RANDOM = 24 * int(os.environ.get("FLUVIAL_MATRIX", "1"))
CELLS = list(dict.fromkeys([*pairwise(), *drawn(RANDOM)]))
EQUAL = 1e-3  # of the size of the values, in fp32
each_architecture = pytest.mark.parametrize("model", ARCHITECTURES)


@each_architecture
def test_cells_equal_the_plain_run(model: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    count, wrong, right, guessed = Counter[str](), list[str](), Counter[str](), Counter[str]()
    for cell in (cell for cell in CELLS if cell.model == model):
        folder = tmp_path_factory.mktemp("cell")
        if refused(cell):
            count["refused"] += 1
            with pytest.raises(UnsupportedError):
                composed(cell, folder)
            continue
        count["equal"] += 1
        wanted, got = plain(cell), composed(cell, folder)
        right[cell.draft], guessed[cell.draft] = right[cell.draft] + got.accepted, guessed[cell.draft] + got.drafted
        if (got.answers, got.position) != (wanted.answers, wanted.position):
            wrong.append(f"{cell}: {got.answers} at {got.position}, not {wanted.answers} at {wanted.position}")
        elif gap(got.logits, wanted.logits) > EQUAL:
            wrong.append(f"{cell}: logits {gap(got.logits, wanted.logits):.1e}")
        elif cell.kv == "exact" and distance(got.state, wanted.state) > EQUAL:
            wrong.append(f"{cell}: memory {distance(got.state, wanted.state):.1e}")
        if cell.cache != "cold" and not got.cached > wanted.cached == 0:
            wrong.append(f"{cell}: {got.cached} tokens from the cache")
    guesses = ", ".join(f"{draft} {right[draft]} of {n}" for draft, n in guessed.items() if n)
    print(f"\ncomposition  {model}: {count['equal']} sessions, {len(wrong)} mismatches, {count['refused']} refused")
    print(f"composition  {model}: right guesses: {guesses}")
    assert not wrong, "\n".join(wrong)
    assert 0 < sum(right.values()) < sum(guessed.values())


def test_the_matrix_covers_all_pairs_that_can_meet() -> None:
    shown = {pair for cell in CELLS if not refused(cell) for pair in met(cell)}
    for (a, first), (b, second) in itertools.combinations(AXES.items(), 2):
        for x, y in itertools.product(first, second):
            there = frozenset({(a, x), (b, y)}) in shown
            rest = [model for model in ARCHITECTURES if a != "model" or model == x]
            assert there == any(not refusal(model, {a: x, b: y}) for model in rest), (a, x, b, y)
    works = sum(not refused(cell) for cell in CELLS)
    print(f"\ncomposition  {works} sessions equal the plain run, {len(CELLS) - works} are refused, {len(CELLS)} in all")


@each_architecture
def test_what_the_table_refuses_is_refused_by_name(model: str, tmp_path: Path) -> None:
    plainly = {axis: values[0] for axis, values in AXES.items()}
    plainly |= {"model": model, "draft": "none", "kv": "exact"}
    for feature in FEATURES:
        if feature.needs and feature.axis in AXES:
            cell = Cell(**{**plainly, feature.axis: feature.value})
            assert bool(refused(cell)) == (feature.needs not in ARCHITECTURES[model])
            if refused(cell):
                with pytest.raises(UnsupportedError) as raised:
                    composed(cell, tmp_path)
                assert raised.value.why and raised.value.hint


@each_architecture
def test_rounded_memories(model: str, tmp_path: Path) -> None:
    cell = Cell(model, "int8", "lora", "cold", "none", "image", "saved", "exact")
    for dtype in ("bf16", "int8"):
        if refusal(model, {"state_dtype": dtype}):
            with pytest.raises(UnsupportedError, match="nothing to keep"):
                checkpoints.model_of(model, "int8", "exact", dtype)
            continue
        kept = checkpoints.model_of(model, "int8", "exact", dtype)
        wanted, got = talk(kept, cell), talk(kept, cell, None, tmp_path)
        assert (got.answers, got.position) == (wanted.answers, wanted.position)
        assert gap(got.logits, plain(cell).logits) > 1e-5  # it is in force


@each_architecture
def test_what_a_model_must_bring(model: str, tmp_path: Path) -> None:
    """Every "with": a tower, a head; and every architecture has trees, so that a head's are checked whole."""
    blind = copy.copy(checkpoints.model_of(model, "bf16", "exact"))
    assert not blind.decoder.treeless and len(drafting("head", blind).name)
    blind.tower, blind.draft_head, blind.folder = None, None, tmp_path
    for kind in ("image", "video"):
        with pytest.raises(UnsupportedError, match="reads text only"):
            Session(blind).push(PUSHED[kind])
    for draft in ("mtp", "head"):
        with pytest.raises(UnsupportedError, match="has no"):
            drafting(draft, blind)


def test_the_page_shows_the_table_of_doctor() -> None:
    page = (Path(__file__).parent / "README.md").read_text("utf-8")
    shown = re.search(r"```\n(.*?)```", page, re.DOTALL)
    assert shown is not None and shown[1].splitlines() == lines()
