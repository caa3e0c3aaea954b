"""Products of many rows in half precision: the same numbers, and memory that ends."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fluvial.adapters.formats.product import FEW, product, size

CREEP = """
import torch
from fluvial.adapters.formats.product import product
from fluvial.engine.measure import resident_bytes
weight = torch.randn(64, 64).bfloat16()
with torch.inference_mode():
    for rows in range(1, 64):
        product(torch.randn(rows, 64).bfloat16(), weight)
    before = resident_bytes()
    for rows in range(64, 512):
        product(torch.randn(rows, 64).bfloat16(), weight)
print(resident_bytes() - before)
"""


@given(st.integers(0, 700), st.sampled_from([torch.bfloat16, torch.float16, torch.float32]), st.booleans())
def test_it_is_the_plain_product(rows: int, dtype: torch.dtype, batched: bool) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(*((1,) if batched else ()), rows, 48).to(dtype), torch.randn(24, 48)
    with torch.no_grad():
        got, want = product(x, weight), F.linear(x, weight.to(dtype))
    assert got.dtype is dtype and got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=2**-7 if dtype is torch.bfloat16 else 2**-10, atol=1e-2)


def test_few_sizes_stand_for_all_numbers_of_rows() -> None:
    sizes = [size(rows) for rows in range(4097)]
    assert all(rows <= full <= rows + max(7, rows / 7) for rows, full in enumerate(sizes))
    assert sizes[: FEW + 1] == list(range(FEW + 1)) and sizes == sorted(sizes)
    assert len(set(sizes[FEW + 1 :])) == 14 + 8 * 5  # to 128, and five octaves


def test_a_product_that_learns_is_torch_s_own() -> None:
    x, weight = torch.randn(33, 8).bfloat16(), torch.randn(8, 8, dtype=torch.bfloat16, requires_grad=True)
    product(x, weight).sum().backward()
    assert weight.grad is not None and weight.grad.abs().sum() > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_texts_of_all_lengths_take_no_memory_that_stays() -> None:
    """448 lengths, for each of which torch alone would keep 0.5 MB."""
    grown = subprocess.run([sys.executable, "-c", CREEP], check=True, capture_output=True, text=True).stdout
    assert int(grown) < 448 * 0.5e6 / 4
