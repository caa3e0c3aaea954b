"""Every model x storage format x plugin x way to feed it: the greedy tokens of the same weights' plain path."""

from __future__ import annotations

import pytest
import torch

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.recipes import ROUNDED
from tests.composition.matrix import AXES, ROUTES, STATELESS, Cell, cells, plain, run
from tests.models import zoo

CELLS = [Cell(*cell) for cell in cells()]
REFUSED = [cell for cell in CELLS if "s" in ROUTES[cell.plugin] and cell.model in STATELESS]


@pytest.mark.parametrize("format", AXES["format"])
@pytest.mark.parametrize("model", AXES["model"])
def test_cells_equal_the_plain_path(model: str, format: str) -> None:
    for cell in (cell for cell in CELLS if (cell.model, cell.format) == (model, format)):
        if cell in REFUSED:
            with pytest.raises(UnsupportedError, match="needs a recurrent model"):
                run(cell)
            continue
        wanted, got = plain(model, format, cell.plugin), run(cell)
        assert torch.equal(got.answer, wanted.answer), cell
        assert zoo.gap(got.logits, wanted.logits) <= (0.03 if format.endswith(ROUNDED) else 1e-4), cell


def test_the_matrix_is_whole() -> None:
    equal = len(CELLS) - len(REFUSED)
    print(f"composition  {equal} cells equal the plain path, {len(REFUSED)} are refused, {len(CELLS)} in all")
    assert len(set(CELLS)) == len(CELLS) == len(zoo.NAMES) * 5 * 4 * 3
    assert (equal, len(REFUSED)) == (630, 30)


def test_the_axes_change_the_answer() -> None:
    """Else what is forgotten on both sides would pass."""
    for model in ("gated_delta", "rwkv7", "mamba2", "delta_hybrid"):
        runs = [plain(model, format, plugin) for format in AXES["format"] for plugin in ROUTES]
        for i, one in enumerate(runs):
            assert all(zoo.gap(one.logits, other.logits) > 1e-3 for other in runs[:i])
        assert len({tuple(one.answer.flatten().tolist()) for one in runs}) > 3
