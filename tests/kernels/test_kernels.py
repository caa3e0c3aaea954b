"""Law 5: every registered kernel equals its torch reference on every input that it accepts.

A new kernel is covered by an entry in `SAMPLES`; one without an entry fails.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fluvial.adapters import native, ops
from fluvial.models import decoder  # noqa: F401  (it defines the ops)
from tests.kernels.samples import SAMPLES, attend, gated_delta_mix, mamba2_mix, mamba_mix, random, rwkv7_mix

RELATIVE = (
    2e-6  # of the largest value, from the reference in fp64; where fp32 rounds worse, twice the reference's error
)


def _map(way: Callable[[Tensor], Tensor], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with every floating-point tensor changed in that way."""
    return tuple(way(a) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def _outputs(given: Any) -> tuple[Tensor, ...]:
    return (given,) if isinstance(given, Tensor) else tuple(given)


def _layouts(args: tuple[Any, ...], op: str) -> dict[str, tuple[Any, ...]]:
    def strided(t: Tensor) -> Tensor:
        return torch.stack([t, t + 1], -1)[..., 0]

    def reversed_storage(t: Tensor) -> Tensor:
        return t.permute(*reversed(range(t.ndim))).contiguous().permute(*reversed(range(t.ndim)))

    def offset(t: Tensor) -> Tensor:  # aligned to nothing but its own 4 bytes
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    ways: dict[str, Callable[[Tensor], Tensor]]
    ways = {"contiguous": lambda t: t, "strided": strided, "reversed": reversed_storage, "offset": offset}
    if op == "attend":  # it reads a tape where that lies, and declines what is no tape
        del ways["strided"], ways["reversed"], ways["offset"]
    return {name: _map(way, args) for name, way in ways.items()}


def _variants(kernel: ops.Kernel) -> list[str | None]:
    """The compiled copies of a kernel that this CPU runs; [None] for one that has no copies."""
    library = native.library()
    return list(library.sets) if library and "instructions" in inspect.signature(kernel.run).parameters else [None]


def _kernels(op: str) -> list[ops.Kernel]:
    """Those of the CPU: others give shapes only (engine/workspace.py)."""
    return [kernel for kernel in ops.registered()[op].kernels if kernel.device == "cpu"]


KERNELS = [kernel for op in ops.registered() for kernel in _kernels(op)]
CASES = [
    pytest.param(kernel, variant, shape, id=f"{kernel.op}-{variant}-{'x'.join(map(str, shape))}")
    for kernel in KERNELS
    if kernel.op in SAMPLES
    for variant in _variants(kernel)
    for shape in SAMPLES[kernel.op].shapes
]


def _run(kernel: ops.Kernel, variant: str | None, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    return _outputs(kernel.run(*args, instructions=variant) if variant else kernel.run(*args))


@pytest.mark.parametrize(("kernel", "variant", "shape"), CASES)
@torch.no_grad()
def test_kernel_equals_its_reference(kernel: ops.Kernel, variant: str | None, shape: tuple[int, ...]) -> None:
    reference = ops.registered()[kernel.op].reference
    args = SAMPLES[kernel.op].make(*shape)
    expected, exact = _outputs(reference(*args)), _outputs(reference(*_map(Tensor.double, args)))
    for layout, given in _layouts(args, kernel.op).items():
        before = _map(Tensor.clone, given)
        assert kernel.accepts(*given), layout
        outputs = _run(kernel, variant, given)
        for a, b in zip(given, before, strict=True):
            assert not isinstance(a, Tensor) or torch.equal(a, b), f"{layout}: an input was written"
        for i, (got, want, truth) in enumerate(zip(outputs, expected, exact, strict=True)):
            assert got.shape == want.shape and got.dtype == want.dtype
            size, rounding = truth.abs().max().item(), (want - truth).abs().max().item()
            assert (got - truth).abs().max().item() <= max(RELATIVE * size, 2 * rounding), (layout, i)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.op)
def test_kernel_declines_what_it_cannot_do(kernel: ops.Kernel) -> None:
    samples = SAMPLES[kernel.op]
    args = samples.make(*samples.shapes[0])
    assert kernel.accepts(*args)
    for i, arg in enumerate(args):
        if not isinstance(arg, Tensor) or not arg.is_floating_point():
            continue
        learning = [*args[:i], arg.detach().requires_grad_(), *args[i + 1 :]]
        assert not kernel.accepts(*learning), f"argument {i} wants a gradient"
        with torch.no_grad():
            assert kernel.accepts(*learning)
        assert not kernel.accepts(*args[:i], arg.double(), *args[i + 1 :]), f"argument {i} in fp64"
        assert not kernel.accepts(*args[:i], arg[..., :0], *args[i + 1 :]), f"argument {i} of another shape"
    for shape in samples.declined:
        assert not kernel.accepts(*samples.make(*shape)), shape


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.op)
@torch.no_grad()
def test_op_calls_its_kernel_and_threads_change_nothing(kernel: ops.Kernel) -> None:
    op, samples = ops.registered()[kernel.op], SAMPLES[kernel.op]
    args = samples.make(*samples.shapes[-1])
    assert ops.explain()[kernel.op] == kernel.label
    alone = _outputs(kernel.run(*args))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = _outputs(op(*args))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    ("mix", "shape", "state"),
    [
        (gated_delta_mix, (2, 5, 3, 1, 24, 40, True), 7),
        (rwkv7_mix, (2, 5, 3, 24, False, True), 13),
        (mamba2_mix, (2, 5, 4, 2, 24, 40, "after", True), 7),
        (mamba_mix, (2, 5, 24, 16, True), 8),
    ],
)
@torch.no_grad()
def test_padding_leaves_a_state_bit_for_bit(
    mix: Callable[..., tuple[Any, ...]], shape: tuple[Any, ...], state: int
) -> None:
    args = list(mix(*shape))
    padding = state + 1
    args[padding] = torch.ones_like(args[padding])
    for kernel in _kernels(mix.__name__):
        assert torch.equal(kernel.run(*args)[-1], args[state])


@torch.no_grad()
def test_attention_takes_the_new_rows_in() -> None:
    for kernel in _kernels("attend"):
        for variant in _variants(kernel):
            q, k, v, k_store, v_store, before, scale = attend(3, 8, 2, 64, 100, 7)
            stores = k_store.clone(), v_store.clone()
            _run(kernel, variant, (q, k, v, *stores, before, scale))
            for store, old, new in zip(stores, (k_store, v_store), (k, v), strict=True):
                for b, at in enumerate(before):
                    old[b, :, at : at + 3] = new[b].transpose(0, 1)
                assert torch.equal(store, old)


@torch.no_grad()
def test_attention_reads_half_precision_tapes() -> None:
    for kernel in _kernels("attend"):
        args = _map(Tensor.bfloat16, attend(3, 8, 2, 64, 100, 7))
        assert kernel.accepts(*args)
        exact = ops.registered()["attend"].reference(*_map(Tensor.double, args))
        for variant in _variants(kernel):
            got = _run(kernel, variant, args)[0]
            assert got.dtype == torch.bfloat16
            assert (got - exact).abs().max() <= 2**-8 * exact.abs().max()


LOW_BIT = [(op, x_bits) for op in ("int4_linear", "int8_linear") for x_bits in (None, 8)]


@pytest.mark.parametrize(("op", "x_bits"), [*LOW_BIT, ("dense_linear", None)])
@torch.no_grad()
def test_a_matrix_takes_half_precision_and_any_batch(op: str, x_bits: int | None) -> None:
    for kernel in _kernels(op):
        x, *weights = SAMPLES[op].make(6, 21, 320, *((32,) if op != "dense_linear" else ()))
        if x_bits:
            weights[-1] = x_bits
        for variant in _variants(kernel):
            want = ops.registered()[op].reference(x.bfloat16().double(), *weights)
            given = (x.bfloat16().view(2, 3, -1), *weights)
            assert kernel.accepts(*given)
            (got,) = _run(kernel, variant, given)
            assert got.dtype == torch.bfloat16 and got.shape == (2, 3, 21)
            assert (got.flatten(0, 1) - want).abs().max() <= 2**-8 * want.abs().max()
            bad = x.clone()
            bad[2, 40] = float("nan")
            assert _run(kernel, variant, (bad, *weights))[0].isnan().any(1).tolist() == [i == 2 for i in range(6)]
            many = x.bfloat16().repeat(4, 1)  # in bf16 the CPU's own product of many rows is faster for a dense matrix
            if op != "dense_linear":
                assert kernel.accepts(many, *weights)
                assert torch.equal(_run(kernel, variant, (many, *weights))[0][-6:], got.flatten(0, 1))
        assert not kernel.accepts(x[:0], *weights)


@pytest.mark.parametrize(
    ("dtype", "x_bits"), [(torch.float32, None), (torch.bfloat16, None), (torch.float32, 8), (torch.bfloat16, 8)]
)
@torch.no_grad()
def test_activations_are_the_same_numbers_for_any_rows_and_instructions(dtype: torch.dtype, x_bits: int | None) -> None:
    draw = random(1)
    x = (draw(40, 96) * torch.exp(4 * draw(40, 96))).to(dtype)
    q, scale = 64 * torch.eye(96, dtype=torch.int8), torch.full((96, 3), 1 / 64, dtype=torch.float16)
    largest = x.float().unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True).expand(-1, -1, 32).flatten(1)
    error = 2**-21 * largest if dtype == torch.float32 else 2**-15 * largest + 2**-8 * x.float().abs()
    if x_bits == 8:
        error = error + largest / 254
    for kernel in _kernels("int8_linear"):
        whole = _run(kernel, None, (x, q, scale, x_bits))[0]
        assert ((whole.float() - x.float()).abs() <= error).all()
        for variant in _variants(kernel):
            for rows in (1, 2, 7, 16, 17, 40):
                got = torch.cat([_run(kernel, variant, (some, q, scale, x_bits))[0] for some in x.split(rows)])
                assert torch.equal(got, whole), (variant, rows)


@pytest.mark.parametrize(("op", "x_bits"), LOW_BIT)
@torch.no_grad()
def test_a_product_is_the_same_for_any_rows(op: str, x_bits: int | None) -> None:
    # bands of W that are not whole, more columns than a chunk, more than are summed row by row
    for out, columns in ((21, 2208), (5, 96), (17, 4640)):
        x, *weights = SAMPLES[op].make(33, out, columns, 32)
        weights[-1] = x_bits
        for kernel in _kernels(op):
            for variant in _variants(kernel):
                (whole,) = _run(kernel, variant, (x, *weights))
                for rows in (1, 2, 7, 16):
                    got = torch.cat([_run(kernel, variant, (some, *weights))[0] for some in x.split(rows)])
                    assert torch.equal(got, whole), (variant, rows)


def test_every_kernel_has_samples_and_an_op() -> None:
    assert {kernel.op for kernel in KERNELS} <= set(SAMPLES), "add the new kernel's inputs to SAMPLES"
    assert set(ops._kernels) <= set(ops.registered()), "a kernel names an op that does not exist"
