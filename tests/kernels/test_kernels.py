"""Law 5: every registered kernel equals its torch reference on every input that it accepts.

A new kernel is covered by an entry in `SAMPLES`; one without an entry fails. Letters as in the mixers' files.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fluvial.adapters import native, ops
from fluvial.models import decoder  # noqa: F401  (it defines the ops)

RELATIVE = 2e-6  # of the largest value, from the reference in fp64: in fp32 it may round worse than the kernel


@dataclass(frozen=True)
class Samples:
    """Inputs of an op: `make(*shape)` for shapes that its kernels must accept, and shapes that they decline."""

    make: Callable[..., tuple[Tensor, ...]]
    shapes: list[tuple[int, ...]]
    declined: list[tuple[int, ...]]


def gated_delta(B: int, T: int, H: int, K: int, V: int) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(B + T + H + K + V)
    q, k = (F.normalize(torch.randn(B, T, H, K, generator=rng), dim=-1) for _ in range(2))
    v, S = torch.randn(B, T, H, V, generator=rng), torch.randn(B, H, K, V, generator=rng)
    g, beta = -3 * torch.rand(B, T, H, generator=rng) ** 3, torch.rand(B, T, H, generator=rng).mul(1.4).sub(0.2)
    g[:, T // 2, 0], beta[:, T // 2, 0] = -200, 1  # a head forgets everything
    g[:, -1, -1], beta[:, -1, -1] = 0, 0  # padding
    return q * K**-0.5, k, v, g, beta.clamp(0, 1), S


SAMPLES = {
    "gated_delta": Samples(
        gated_delta,
        shapes=[
            *((1, T, 3, 64, 64) for T in (1, 2, 5, 16)),
            *((2, T, 2, 128, 128) for T in (1, 2, 5, 16)),
            *((3, T, 5, 17, 65) for T in (1, 2, 5, 16)),  # no multiple of a block or a vector, K < V
            *((2, T, 1, 40, 7) for T in (1, 5)),  # K > V
            *((1, T, 1, 1, 1) for T in (1, 16)),
            (1, 1, 16, 128, 128),  # long enough for threads
        ],
        declined=[(1, 17, 1, 8, 8), (1, 64, 2, 16, 16)],
    ),
}


def _layouts(args: tuple[Tensor, ...]) -> dict[str, tuple[Tensor, ...]]:
    def strided(t: Tensor) -> Tensor:
        return torch.stack([t, t + 1], -1)[..., 0]

    def reversed_storage(t: Tensor) -> Tensor:
        return t.permute(*reversed(range(t.ndim))).contiguous().permute(*reversed(range(t.ndim)))

    def offset(t: Tensor) -> Tensor:  # aligned to nothing but its own 4 bytes
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    ways: dict[str, Callable[[Tensor], Tensor]]
    ways = {"contiguous": lambda t: t, "strided": strided, "reversed": reversed_storage, "offset": offset}
    return {name: tuple(way(t) for t in args) for name, way in ways.items()}


def _variants(kernel: ops.Kernel) -> list[str | None]:
    """The compiled copies of a kernel that this CPU runs; [None] for one that has no copies."""
    library = native.library()
    return list(library.sets) if library and "instructions" in inspect.signature(kernel.run).parameters else [None]


KERNELS = [kernel for op in ops.registered().values() for kernel in op.kernels if kernel.device == "cpu"]
CASES = [
    pytest.param(kernel, variant, shape, id=f"{kernel.op}-{variant}-{'x'.join(map(str, shape))}")
    for kernel in KERNELS
    if kernel.op in SAMPLES
    for variant in _variants(kernel)
    for shape in SAMPLES[kernel.op].shapes
]


def _run(kernel: ops.Kernel, variant: str | None, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return kernel.run(*args, instructions=variant) if variant else kernel.run(*args)


@pytest.mark.parametrize(("kernel", "variant", "shape"), CASES)
@torch.no_grad()
def test_kernel_equals_its_reference(kernel: ops.Kernel, variant: str | None, shape: tuple[int, ...]) -> None:
    reference = ops.registered()[kernel.op].reference
    args = SAMPLES[kernel.op].make(*shape)
    expected, exact = reference(*args), reference(*(a.double() for a in args))
    for layout, given in _layouts(args).items():
        before = [a.clone() for a in given]
        assert kernel.accepts(*given), layout
        outputs = _run(kernel, variant, given)
        assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True)), f"{layout}: an input was written"
        for i, (got, want, truth) in enumerate(zip(outputs, expected, exact, strict=True)):
            assert got.shape == want.shape and got.dtype == want.dtype
            assert (got - truth).abs().max().item() <= RELATIVE * truth.abs().max().item(), (layout, i)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.op)
def test_kernel_declines_what_it_cannot_do(kernel: ops.Kernel) -> None:
    samples = SAMPLES[kernel.op]
    args = samples.make(*samples.shapes[0])
    assert kernel.accepts(*args)
    for i, arg in enumerate(args):
        learning = [*args[:i], arg.clone().requires_grad_(), *args[i + 1 :]]
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
    alone = kernel.run(*args)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = op(*args)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@torch.no_grad()
def test_padding_leaves_a_state_bit_for_bit() -> None:
    *rows, S = gated_delta(2, 5, 3, 24, 40)
    q, k, v, g, beta = rows
    for kernel in ops.registered()["gated_delta"].kernels:
        assert torch.equal(kernel.run(q, k, v, torch.zeros_like(g), torch.zeros_like(beta), S)[2], S)


def test_every_kernel_has_samples_and_an_op() -> None:
    assert {kernel.op for kernel in KERNELS} <= set(SAMPLES), "add the new kernel's inputs to SAMPLES"
    assert set(ops._kernels) <= set(ops.registered()), "a kernel names an op that does not exist"
