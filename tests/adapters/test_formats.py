"""Low-bit formats: what packing loses, that nothing is lost twice, and the matrix product."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fluvial.adapters import ops
from fluvial.adapters.errors import IntegrityError, UnsupportedError
from fluvial.adapters.formats import base, by_name, int4, int8
from fluvial.adapters.formats.grouped import GROUPS, Grouped
from fluvial.adapters.linear import Embedding, Linear
from fluvial.adapters.lora import LoraPair, Replacement
from fluvial.adapters.recipes import ROUNDED

GROUPED = sorted(name for name, format in base._formats.items() if isinstance(format, Grouped))
LOW = [name for name in GROUPED if not name.endswith(ROUNDED)]
each_format = pytest.mark.parametrize("name", LOW)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wide_tails(*shape: int) -> Tensor:
    torch.manual_seed(2)
    return torch.distributions.StudentT(torch.tensor(3.0)).sample(shape)


CASES = {
    "normal": normal(96, 256),
    "tails": wide_tails(96, 256),
    "zeros": torch.zeros(3, 128),
    "constant": torch.full((3, 128), -0.37),
    "shifted": 3 + normal(32, 128),
    "nearly constant": 1 + normal(32, 128) * 1e-6,
    "huge": normal(32, 128) * 1e4,
    "small": normal(32, 128) * 1e-5,
    "tiny": normal(32, 128) * 3e-7,
    "one outlier": normal(32, 128) * 0.01 + 30 * (torch.arange(128) % 64 == 5),
    "ternary": normal(32, 128).sign() * (normal(32, 128, seed=3) > 0) * 0.013,
    "few levels": (normal(32, 128) * 3).round() * 1e-3,
}


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_every_width_and_kind_is_there():
    kinds = {f"int{bits}-g{g}{z}{s}" for bits, z in ((8, ""), (4, ""), (4, "z")) for g in GROUPS for s in ("", "-bf16")}
    assert set(LOW) == kinds and set(GROUPED) == kinds | {f"{kind}-a8" for kind in kinds}


@each_format
@pytest.mark.parametrize("case", CASES)
def test_packing_what_was_unpacked_changes_nothing(name, case):
    format = by_name(name)
    parts = format.pack(CASES[case])
    again = format.pack(format.unpack(parts))
    assert parts.keys() == again.keys() == format.empty(1, 128, None, "meta").keys()
    assert all(torch.equal(parts[part], again[part]) for part in parts)


@each_format
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(-8, 2.5), shift=st.floats(-4, 4), steps=st.integers(1, 20))
def test_packing_twice_changes_nothing_for_random_groups(name, seed, size, shift, steps):
    format, w = by_name(name), normal(4, 128, seed=seed)
    for matrix in ((w + shift) * 10**size, (w * steps).round() * 10**size):
        parts = format.pack(matrix)
        again = format.pack(format.unpack(parts))
        assert all(torch.equal(parts[part], again[part]) for part in parts)


@each_format
def test_error_is_near_the_best_possible(name):
    """Against every scale (and offset) of a fine search over one group at a time."""
    format = by_name(name)
    for w in (normal(40, 128), wide_tails(40, 128)):
        lost = (format.unpack(format.pack(w)) - w).square().sum()
        luck = 1.2 if format.bits == 8 else 1.1  # of eight bits the best of many tries is chance
        assert lost <= luck * _best(w.reshape(-1, format.group), format)


def _best(w: Tensor, format: Grouped) -> Tensor:
    low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    least = torch.full((len(w), 1), torch.inf)
    zero = name_has_offset(format)
    for shrink in torch.linspace(0.55, 1.06, 35):
        if zero:
            ways = [((high - low) * shrink / 15, low + (high - low) * (1 - shrink) * at) for at in (0.0, 0.5, 1.0)]
        else:
            reach = high.maximum(-low) * shrink
            ways = [(reach / format.highest, torch.zeros_like(low)), (-reach / format.highest, torch.zeros_like(low))]
            ways += [(sign * reach / -format.lowest, torch.zeros_like(low)) for sign in (1, -1)]
        for scale, offset in ways:
            codes = ((w - offset) / scale).round().clamp(format.lowest, format.highest)
            least = least.minimum((codes * scale + offset - w).square().sum(-1, keepdim=True))
    return least.sum()


def name_has_offset(format: Grouped) -> bool:
    return "offset" in format.empty(1, 128, None, "meta")


@pytest.mark.parametrize(
    ("name", "bound"), [("int8-g32", 0.006), ("int8-g128", 0.007), ("int4-g32", 0.084), ("int4-g128", 0.1)]
)
def test_error_on_normal_weights(name, bound):
    format = by_name(name)
    assert relative(format.unpack(format.pack(CASES["normal"])), CASES["normal"]) < bound


def test_an_offset_helps_where_the_values_are_not_around_zero():
    plain, zero = by_name("int4-g32"), by_name("int4-g32z")
    w = CASES["shifted"]
    assert relative(zero.unpack(zero.pack(w)), w) < 0.5 * relative(plain.unpack(plain.pack(w)), w)


@pytest.mark.parametrize("name", ["int4-g32", "int4-g128"])
def test_what_four_bits_can_say_is_said_exactly(name):
    format = by_name(name)
    for levels, scale in ((range(-8, 8), 0.013), (range(-7, 8), 0.5), (range(-1, 2), 0.02), (range(-3, 4), 3.0)):
        step = torch.tensor(scale).half().float()
        w = (
            torch.tensor(levels)[torch.randint(len(levels), (16, 128), generator=torch.Generator().manual_seed(4))]
            * step
        )
        assert torch.equal(format.unpack(format.pack(w)), w)


def test_the_order_of_the_nibbles():
    """Byte l of a block of 32 columns: column l low, column 16 + l high; codes are stored plus 8."""
    codes = torch.arange(64).remainder(16)[None] - 8
    codes[0, 32:] = codes[0, 32:].flip(0)
    parts = by_name("int4-g32").pack(codes * 0.25)
    assert parts["scale"].tolist() == [[0.25, 0.25]] and parts["q"].dtype == torch.uint8
    for block in range(2):
        for byte in range(16):
            stored = int(parts["q"][0, 16 * block + byte])
            assert stored & 15 == codes[0, 32 * block + byte] + 8
            assert stored >> 4 == codes[0, 32 * block + 16 + byte] + 8


@each_format
def test_values_that_are_not_finite_are_refused(name):
    for bad in (torch.nan, torch.inf, -torch.inf):
        w = normal(4, 128)
        w[2, 77] = bad
        with pytest.raises(IntegrityError, match="finite"):
            by_name(name).pack(w)


def test_values_beyond_the_scales_are_refused_and_bf16_scales_reach_further():
    w = normal(4, 128) * 1e8
    with pytest.raises(IntegrityError, match="float16"):
        by_name("int4-g32").pack(w)
    bf16 = by_name("int4-g32-bf16")
    assert relative(bf16.unpack(bf16.pack(w)), w) < 0.1


@each_format
def test_widths_that_no_group_divides_are_refused(name):
    for width in (1, 31, 48, 100):
        with pytest.raises(UnsupportedError, match=str(width)):
            by_name(name).pack(torch.zeros(2, width))


@each_format
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_layer_multiplies_by_what_it_unpacks(name, dtype):
    """Also a matrix of several blocks of rows, and any leading shape."""
    torch.manual_seed(5)
    for d_in, d_out in ((128, 9), (1024, 300)):
        layer = Linear(d_in, d_out, bias=True)
        layer.store(by_name(name))
        matrix, x = layer.matrix(), torch.randn(2, 3, d_in, dtype=torch.float64)
        layer.to(dtype) if dtype != torch.bfloat16 else layer.bias.data.copy_(layer.bias.bfloat16())
        exact = x.to(dtype).double() @ matrix.to(dtype).double().T + layer.bias.double()
        with ops.reference_only():
            y = layer(x.to(dtype))
        limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
        assert ((y.double() - exact).abs().max() / exact.abs().max()).item() <= limit


@each_format
def test_a_table_unpacks_the_rows_asked_for(name, monkeypatch):
    table = Embedding(500, 128)
    table.store(by_name(name))
    whole, ids = table.matrix(), torch.tensor([[3, 499, 3], [0, 7, 250]])
    seen: list[int] = []
    module = int8 if name.startswith("int8") else int4
    unpack = module._unpack

    def counted(q: Tensor, *more: Tensor | None) -> Tensor:
        seen.append(len(q))
        return unpack(q, *more)

    monkeypatch.setattr(module, "_unpack", counted)
    assert torch.equal(table.lookup(ids), whole[ids])
    assert torch.equal(table.lookup(torch.tensor(5)), whole[5])
    with ops.reference_only():
        seen.clear()
        assert torch.equal(table.lookup(ids), whole[ids]) and seen == [6]
    for wrong in (500, -501):
        with pytest.raises(IndexError):
            table.lookup(torch.tensor([[wrong]]))


@each_format
def test_a_packed_layer_is_not_trained_and_moves_with_its_module(name):
    layer = Linear(128, 8)
    layer.store(by_name(name))
    assert not list(layer.parameters()) and set(dict(layer.named_buffers())) == set(layer.parts)
    x = torch.randn(2, 128, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.matrix().sum(0).expand(2, -1))


@pytest.mark.parametrize("name", sorted(base._formats))
@pytest.mark.parametrize("rows", [slice(40), torch.tensor([7, 2, 60, 7])], ids=["view", "ids"])
def test_some_rows_of_a_product_are_those_of_the_whole(name, rows):
    """Drafts choose from a part of the vocabulary: no format and no plugin may be skipped there."""
    torch.manual_seed(3)
    table, x = Embedding(64, 128), normal(2, 128)
    table.store(by_name(name))
    table.attach("lora", LoraPair(normal(2, 128), normal(64, 2), 0.5, normal(64), normal(64)))
    table.attach("other", Replacement(normal(64, 128), normal(64)))
    with torch.no_grad():
        for route in (None, {"lora": 0.7}, {"other": 1.0, "lora": torch.tensor([0.2, 1.0])}):
            torch.testing.assert_close(table.some(x, rows, route), table(x, route)[:, rows], rtol=1e-4, atol=1e-4)


# activations of 8 bits


@each_format
def test_rounding_activations_changes_nothing_that_is_stored(name):
    plain, eight = by_name(name), by_name(name + ROUNDED)
    w = CASES["normal"]
    parts, same = plain.pack(w), eight.pack(w)
    assert parts.keys() == same.keys() and all(torch.equal(parts[part], same[part]) for part in parts)
    assert torch.equal(plain.unpack(parts), eight.unpack(same))


@each_format
@torch.no_grad()
def test_activations_are_rounded_before_the_product(name):
    """Against the definition, written out: each 32 activations are whole multiples of a 127th of the largest."""
    eight, x = by_name(name + ROUNDED), 5 * normal(7, 256, seed=4) ** 3
    parts, near = eight.pack(CASES["normal"]), torch.empty_like(x)
    for row, to in zip(x, near, strict=True):
        for at in range(0, 256, 32):
            unit = row[at : at + 32].abs().max() / 127
            to[at : at + 32] = (row[at : at + 32] * (1 / unit)).round() * unit
    wanted = near.double() @ eight.unpack(parts).double().T
    for way in (eight.matmul(x, parts), eight.matmul(x.double(), parts)):
        assert relative(way.double(), wanted) < 1e-6
    assert 0.002 < relative(eight.matmul(x, parts), by_name(name).matmul(x, parts)) < 0.01
    ids = torch.tensor([3, 1])
    assert relative(eight.matmul_rows(x, parts, ids).double(), wanted[:, ids]) < 1e-6
    assert torch.equal(eight.rows(parts, ids), eight.unpack(parts)[ids])  # a look-up multiplies nothing


def test_a_gradient_passes_rounded_activations():
    layer = Linear(64, 48)
    layer.store(by_name("int8-g32-a8"))
    x = normal(3, 64).requires_grad_()
    layer(x).square().sum().backward()
    y = layer(x).detach()
    assert relative(x.grad, 2 * y @ layer.matrix()) < 1e-6


@torch.no_grad()
def test_zeros_tiny_and_broken_activations():
    layer = Linear(64, 48)
    layer.store(by_name("int4-g32-a8"))
    x = torch.stack([torch.zeros(64), torch.full((64,), 1e-42), normal(64), normal(64)])
    x[3, 5] = float("inf")
    for way in (layer(x), layer(x.bfloat16())):
        assert way[:2].abs().max() <= 1e-38 and way[2].isfinite().all() and way[3].isnan().all()
    with ops.reference_only():
        assert layer(x)[3].isnan().all() and layer(x)[:3].isfinite().all()
