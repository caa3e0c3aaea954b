"""Law 5: every registered kernel equals its torch reference on every input that it accepts.

A new kernel is covered by an entry in `SAMPLES`; one without an entry fails. Letters as in the mixers' files.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fluvial.adapters import native, ops
from fluvial.models import decoder  # noqa: F401  (it defines the ops)

RELATIVE = (
    2e-6  # of the largest value, from the reference in fp64; where fp32 rounds worse, twice the reference's error
)


@dataclass(frozen=True)
class Samples:
    """Inputs of an op: `make(*shape)` for shapes that its kernels must accept, and shapes that they decline."""

    make: Callable[..., tuple[Any, ...]]
    shapes: list[tuple[Any, ...]]
    declined: list[tuple[Any, ...]]


def _random(seed: int) -> Callable[..., Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=rng)


def _padding(B: int, T: int, padded: bool) -> Tensor | None:
    """The last row's last token is padding."""
    return (torch.arange(T) == T - 1) & (torch.arange(B) == B - 1)[:, None] if padded else None


def gated_delta_mix(B: int, T: int, H: int, groups: int, K: int, V: int, other: bool = False) -> tuple[Any, ...]:
    """`other`: a hard gate of twice the height, no eps, padding."""
    draw, k_heads = _random(B + T + H + K + V), H // groups
    rows, z, S = draw(B, T, 2 * k_heads * K + H * V), draw(B, T, H * V), draw(B, H, K, V)
    a, b, A_log, dt_bias, gain = draw(B, T, H), draw(B, T, H), draw(H), draw(H), draw(V)
    a[:, T // 2, 0], b[:, T // 2, 0] = 200, 90  # a head forgets everything
    options = (True, 2.0, 0.0, 1e-6) if other else (False, 1.0, 1e-6, 1e-5)
    return rows, a, b, z, A_log, dt_bias, gain, S, _padding(B, T, other), k_heads, *options


def rwkv7_mix(B: int, T: int, H: int, K: int, first: bool = False, padded: bool = False) -> tuple[Any, ...]:
    draw, D = _random(B + T + H + K), H * K
    rows = [2 * draw(B, T, D) for _ in range(6)]
    blend = (None, None) if first else (draw(B, T, D), draw(B, T, D))
    weights = draw(D), draw(D), draw(H, K), draw(D), draw(D)
    return *rows, *blend, *weights, draw(B, H, K, K), _padding(B, T, padded), 64e-5


def mamba2_mix(
    B: int, T: int, H: int, groups: int, P: int, N: int, norm: str = "after", padded: bool = False
) -> tuple[Any, ...]:
    draw = _random(B + T + H + P + N)
    mixed, dt, z = draw(B, T, H * P + 2 * groups * N), 3 * draw(B, T, H), draw(B, T, H * P)
    gain = draw(H * P) if norm != "none" else None
    limit = (0.1, 2.0) if padded else (0.0, float("inf"))
    heads = draw(H), draw(H), draw(H)
    return mixed, dt, z, *heads, gain, draw(B, H, P, N), _padding(B, T, padded), groups, norm == "before", 1e-5, limit


def mamba_mix(B: int, T: int, E: int, N: int, padded: bool = False) -> tuple[Any, ...]:
    draw = _random(B + T + E + N)
    rows = draw(B, T, E), 3 * draw(B, T, E), draw(B, T, E), draw(B, T, N), draw(B, T, N)
    return *rows, draw(E, N), draw(E), draw(E), draw(B, E, N), _padding(B, T, padded)


def short_conv(B: int, T: int, C: int, size: int, bias: bool = False, activate: bool = False) -> tuple[Any, ...]:
    draw = _random(B + T + C)
    return draw(B, T, C), draw(B, size - 1, C), draw(C, size), draw(C) if bias else None, activate


def head_rows(B: int, T: int, H: int, D: int, R: int, norm: bool) -> tuple[Any, ...]:
    draw = _random(B + T + H + D)
    turns = (draw(B, T, 1, R), draw(B, T, 1, R)) if R else (None, None)
    return draw(B, T, H, D), draw(D) if norm else None, *turns, 1.0, 1e-6


def attend(T: int, H: int, G: int, D: int, *before: int) -> tuple[Any, ...]:
    B, rows, draw = len(before), max(before) + T, _random(T + H + D)
    stores = (draw(B, G, rows + 3, D) for _ in range(2))
    new = draw(B, T, G, D), draw(B, T, G, D)
    return 2 * draw(B, T, H, D), *new, *stores, before, None if H == G else 0.3


def of_rows(*widths: int) -> Callable[..., tuple[Any, ...]]:
    """x [rows, D] and so many weights [D]."""
    return lambda rows, D: (3 * _random(D)(rows, D) + 1, *(_random(D + n)(D) for n in widths))


def _codes(M: int, N: int, K: int, group: int, scales: torch.dtype, wild: bool) -> tuple[Tensor, ...]:
    """x, random bytes and scales; `wild`: a row of zeros and scales from the smallest to the largest fp16."""
    draw = _random(M + N + K)
    q, scale = (8 * draw(N, K)).round().clamp(-127, 127).to(torch.int8), draw(N, K // group).to(scales)
    if wild:
        scale[-1], scale[:1], scale[1:2] = 6e-8, 65504, 0
    return draw(M, K), q, scale


def int4_linear(
    M: int,
    N: int,
    K: int,
    group: int,
    zero: bool = False,
    scales: torch.dtype = torch.float16,
    wild: bool = False,
    x_bits: int | None = None,
) -> tuple[Any, ...]:
    x, q, scale = _codes(M, N, K, group, scales, wild)
    offset = (-7 * scale.float() + _random(K)(*scale.shape)).clamp(-6e4, 6e4).to(scales) if zero else None
    return x, q[:, : K // 2].contiguous().view(torch.uint8), scale, offset, x_bits


def int8_linear(
    M: int,
    N: int,
    K: int,
    group: int,
    scales: torch.dtype = torch.float16,
    wild: bool = False,
    x_bits: int | None = None,
) -> tuple[Any, ...]:
    return *_codes(M, N, K, group, scales, wild), x_bits


def dense_linear(M: int, N: int, K: int, stored: torch.dtype = torch.float32) -> tuple[Any, ...]:
    draw = _random(M + N + K)
    return draw(M, K), draw(N, K).to(stored)


def low_rank(
    B: int, T: int, N: int, K: int, rank: int, whole: bool = False, stored: torch.dtype = torch.float32
) -> tuple[Any, ...]:
    """`whole`: with gain and bias, and a strength for each of the B rows, of which the second's is 0."""
    draw = _random(B + T + N + K + rank)
    pair = draw(rank, K).to(stored), draw(N, rank).to(stored)
    strength = draw(B) * (torch.arange(B) != 1) if whole else 0.7
    vectors = (draw(N), draw(N)) if whole else (None, None)
    return draw(B, T, N), draw(B, T, K), *pair, draw(B, T, N), *vectors, 0.3, strength


def largest(B: int, V: int, count: int, levels: float = 0) -> tuple[Any, ...]:
    """`levels`: so few that many values are equal."""
    x = _random(B + V)(B, V)
    return (x * levels).round() if levels else x, count


def int4_rows(n: int, N: int, K: int, group: int, *more: Any) -> tuple[Any, ...]:
    ids = torch.randint(0, N, (1, n), generator=torch.Generator().manual_seed(n))
    return ids, *int4_linear(1, N, K, group, *more)[1:4]


def int8_rows(n: int, N: int, K: int, group: int, *more: Any) -> tuple[Any, ...]:
    ids = torch.randint(0, N, (n, 1), generator=torch.Generator().manual_seed(n))
    return ids, *int8_linear(1, N, K, group, *more)[1:3]


SAMPLES = {
    "largest": Samples(
        largest,
        shapes=[
            *((B, V, count) for B, V in ((1, 1), (2, 70), (3, 1000)) for count in (1, 5, V) if count <= V),
            *((2, 3000, count, 2.0) for count in (1, 64, 2000)),
            (2, 40_000, 200),
        ],
        declined=[(1, 5, 6)],
    ),
    "int4_rows": Samples(
        int4_rows,
        shapes=[
            (1, 9, 96, 32),
            (3, 40, 256, 64, True),
            (5, 7, 128, 128, True, torch.bfloat16),
            (1, 9, 64, 64, False, torch.bfloat16),
        ],
        declined=[(17, 9, 96, 32), (1, 3, 96, 96)],
    ),
    "int8_rows": Samples(
        int8_rows,
        shapes=[(1, 9, 96, 32), (3, 40, 256, 64), (16, 7, 128, 128, torch.bfloat16)],
        declined=[(17, 9, 96, 32), (1, 3, 96, 96)],
    ),
    "low_rank": Samples(
        low_rank,
        shapes=[
            (1, 1, 192, 64, 8),
            *((1, T, 150, 100, 5) for T in (2, 3, 5)),  # no multiple of a vector, a tile
            *((3, T, 33, 7, 11, True) for T in (1, 2, 9)),
            *((4, T, 300, 200, 16, True, torch.bfloat16) for T in (1, 17)),
            (1, 131, 70, 160, 17, False, torch.bfloat16),
            (2, 40, 1, 1, 1, True),
            (1, 1, 40, 64, 0),
            (2, 3, 40, 64, 0, True),
            (1, 90, 400, 512, 16, False),
            (1, 1, 2000, 1024, 128),  # long enough for threads
        ],
        declined=[(1, 1, 0, 64, 8), (1, 1, 64, 8, 2, False, torch.float16)],
    ),
    "int4_linear": Samples(
        int4_linear,
        shapes=[
            *((M, 7, 192, 32) for M in range(1, 19)),
            *((M, 37, 2304, 64, True) for M in (1, 5, 16, 24)),
            *((M, 5, 4352, 128, True, torch.bfloat16) for M in (1, 3, 17)),
            (131, 70, 160, 32, True),  # bands of W that are not whole
            (261, 33, 96, 32),  # more rows than a pass takes
            *((M, 9, 32, 32, False, torch.bfloat16) for M in (1, 2)),
            *((M, 6, 256, 32, zero, torch.float16, True) for M in (1, 4, 33) for zero in (False, True)),
            *((M, 37, 2304, 64, zero, torch.float16, False, 8) for M in (1, 5, 24) for zero in (False, True)),
            (1, 20, 96, 32, False, torch.float16, False, 8),
            (1, 40, 8800, 32, True),  # a row in several parts
            (1, 1, 256, 256),
            (2, 400, 1024, 32),  # long enough for threads
        ],
        declined=[(1, 3, 96, 96), (1, 3, 1024, 1024), (1, 3, 64, 32, False, torch.float16, False, 4)],
    ),
    "int8_linear": Samples(
        int8_linear,
        shapes=[
            *((M, 7, 192, 32) for M in range(1, 19)),
            *((M, 37, 2304, 64) for M in (1, 5, 16, 24)),
            *((M, 5, 4352, 128, torch.bfloat16) for M in (1, 3, 17)),
            (131, 70, 160, 32),
            (261, 33, 96, 32),
            *((M, 6, 256, 32, torch.float16, True) for M in (1, 4, 33)),
            *((M, 37, 2304, 64, torch.float16, False, 8) for M in (1, 5, 24)),
            (1, 20, 96, 32, torch.float16, False, 8),
            (1, 40, 8800, 32),
            (1, 1, 256, 256),
            (2, 400, 1024, 32),
        ],
        declined=[(1, 3, 96, 96), (1, 3, 1024, 1024), (1, 3, 64, 32, torch.float16, False, 4)],
    ),
    "dense_linear": Samples(
        dense_linear,
        shapes=[
            *((M, 7, 192, torch.bfloat16) for M in range(1, 18)),
            *((M, 37, 2304, kind) for M in (1, 5, 16) for kind in (torch.float32, torch.bfloat16)),
            (1, 1, 32),
            (2, 400, 1024),
        ],
        declined=[(1, 3, 48), (17, 3, 64), (1, 3, 64, torch.float16)],
    ),
    "gated_delta_mix": Samples(
        gated_delta_mix,
        shapes=[
            *((1, T, 3, 1, 64, 64) for T in (1, 2, 5, 16)),
            *((2, T, 2, 2, 128, 128, True) for T in (1, 2, 16)),
            *((3, T, 6, 3, 17, 65) for T in (1, 2, 5)),  # no multiple of a block or a vector, K < V
            *((2, T, 1, 1, 40, 7, True) for T in (1, 5)),  # K > V
            (1, 16, 1, 1, 1, 1),
            *((1, T, 3, 1, 64, 64, T == 65) for T in (17, 63, 65, 200)),  # chunks
            *((2, T, 2, 2, 33, 70) for T in (24, 40)),
            *((3, T, 6, 3, 70, 17, True) for T in (32, 33)),
            (1, 130, 1, 1, 1, 1),
            (1, 1, 16, 1, 128, 128),  # long enough for threads
            (1, 80, 5, 1, 128, 128),
        ],
        declined=[(1, 1, 1, 1, 257, 8), (1, 64, 1, 1, 257, 8)],
    ),
    "rwkv7_mix": Samples(
        rwkv7_mix,
        shapes=[
            *((1, T, 3, 64) for T in (1, 2, 5, 16)),
            *((2, T, 2, 64, True, True) for T in (1, 5)),
            *((3, T, 5, 17, False, True) for T in (1, 2, 16)),
            (1, 3, 1, 1),
            (1, 2, 2, 128),
            *((1, T, 3, 64, False, T == 63) for T in (17, 63, 200)),
            *((2, T, 3, 33, True, True) for T in (32, 65)),
            (1, 40, 1, 128),
            (1, 60, 2, 1),
            (2, 16, 32, 64),
            (1, 70, 18, 64),
        ],
        declined=[(1, 1, 1, 257), (1, 40, 1, 257)],
    ),
    "mamba2_mix": Samples(
        mamba2_mix,
        shapes=[
            *((1, T, 4, 1, 64, 128) for T in (1, 2, 5, 16)),
            *((2, T, 6, 2, 7, 19, "before", True) for T in (1, 5)),
            *((3, T, 6, 3, 9, 5, "none", True) for T in (1, 16)),
            (1, 2, 3, 3, 1, 1),
            *((1, T, 3, 1, 64, 128) for T in (17, 63, 200)),
            *((2, T, 6, 2, 33, 19, "before", True) for T in (32, 65)),
            (3, 40, 6, 3, 9, 70, "none", True),
            (1, 100, 1, 1, 1, 1),
            (1, 1, 48, 1, 64, 128),
            (1, 70, 12, 1, 64, 128),
        ],
        declined=[(1, 20, 2, 1, 8, 0)],
    ),
    "mamba_mix": Samples(
        mamba_mix,
        shapes=[
            *((1, T, 130, 16) for T in (1, 2, 5, 16)),
            *((2, T, 67, 5, True) for T in (1, 5)),
            (3, 2, 1, 1),
            *((1, T, 65, 16) for T in (17, 63, 200)),
            *((2, T, 16, 7, True) for T in (16, 65)),
            (1, 3, 2048, 16),
            (1, 40, 400, 16),
        ],
        declined=[(1, 1, 8, 257), (1, 40, 8, 257)],
    ),
    "short_conv": Samples(
        short_conv,
        shapes=[
            (1, 1, 640, 4, True, True),
            (2, 5, 33, 3, False, True),
            (3, 16, 65, 2, True),
            (2, 40, 300, 6),
            (1, 65, 257, 4),
        ],
        declined=[(1, 1, 8, 17)],
    ),
    "token_shift": Samples(
        lambda B, T, D, M: (_random(1)(B, T, D), _random(2)(B, 1, D), _random(3)(M, D)),
        shapes=[(1, 1, 1024, 6), (2, 5, 33, 1), (3, 65, 7, 2)],
        declined=[],
    ),
    "rms_norm": Samples(
        lambda rows, D: (*of_rows(1)(rows, D), 1.0, 1e-6), shapes=[(1, 1024), (5, 33), (65, 1)], declined=[]
    ),
    "layer_norm": Samples(lambda rows, D: (*of_rows(1, 2)(rows, D), 1e-5), shapes=[(1, 1024), (65, 33)], declined=[]),
    "gated_silu": Samples(
        lambda rows, D: (20 * _random(1)(rows, D), _random(2)(rows, D), 1.3),
        shapes=[(1, 3584), (5, 33), (1, 1), (40, 1000)],
        declined=[],
    ),
    "sigmoid_gate": Samples(
        lambda rows, D: (_random(1)(rows, D), 20 * _random(2)(rows, D)),
        shapes=[(1, 2048), (5, 33), (1, 1)],
        declined=[],
    ),
    "activate": Samples(
        lambda rows, D, kind, size: (size * _random(1)(rows, D), kind),
        shapes=[(3, 33, kind, size) for kind in ("tanh", "sigmoid") for size in (1e-3, 1.0, 30.0)],
        declined=[(1, 8, "relu", 1.0)],
    ),
    "head_rows": Samples(
        head_rows,
        shapes=[(1, 1, 16, 128, 64, True), (2, 5, 3, 17, 8, True), (2, 3, 2, 8, 4, False), (2, 33, 2, 9, 0, True)],
        declined=[],
    ),
    "attend": Samples(
        attend,
        shapes=[
            (1, 16, 8, 128, 300),
            (5, 4, 2, 16, 0),  # nothing before
            (3, 6, 2, 17, 70, 5, 0),  # rows of different lengths
            (16, 4, 1, 64, 200),
            (1, 2, 2, 128, 0, 3, 64),
            (1, 1, 1, 256, 63),
            (1, 8, 2, 128, 900),
            (17, 4, 1, 8, 4),  # the first that has blocks of queries
            (40, 6, 2, 17, 70, 5, 0),
            (150, 4, 1, 72, 61),  # in several parts
            (70, 2, 2, 256, 0),
        ],
        declined=[(1, 1, 1, 264, 4), (17, 1, 1, 264, 4)],
    ),
}


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
    draw = _random(1)
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
