"""Inputs of every op that has a kernel, by the op's name. Letters as in the mixers' files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Inputs of an op: `make(*shape)` for shapes that its kernels must accept, and shapes that they decline."""

    make: Callable[..., tuple[Any, ...]]
    shapes: list[tuple[Any, ...]]
    declined: list[tuple[Any, ...]]


def random(seed: int) -> Callable[..., Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=rng)


def _padding(B: int, T: int, padded: bool) -> Tensor | None:
    """The last row's last token is padding."""
    return (torch.arange(T) == T - 1) & (torch.arange(B) == B - 1)[:, None] if padded else None


def gated_delta_mix(B: int, T: int, H: int, groups: int, K: int, V: int, other: bool = False) -> tuple[Any, ...]:
    """`other`: a hard gate of twice the height, no eps, padding."""
    draw, k_heads = random(B + T + H + K + V), H // groups
    rows, z, S = draw(B, T, 2 * k_heads * K + H * V), draw(B, T, H * V), draw(B, H, K, V)
    a, b, A_log, dt_bias, gain = draw(B, T, H), draw(B, T, H), draw(H), draw(H), draw(V)
    a[:, T // 2, 0], b[:, T // 2, 0] = 200, 90  # a head forgets everything
    options = (True, 2.0, 0.0, 1e-6) if other else (False, 1.0, 1e-6, 1e-5)
    return rows, a, b, z, A_log, dt_bias, gain, S, _padding(B, T, other), k_heads, *options


def rwkv7_mix(B: int, T: int, H: int, K: int, first: bool = False, padded: bool = False) -> tuple[Any, ...]:
    draw, D = random(B + T + H + K), H * K
    rows = [2 * draw(B, T, D) for _ in range(6)]
    blend = (None, None) if first else (draw(B, T, D), draw(B, T, D))
    weights = draw(D), draw(D), draw(H, K), draw(D), draw(D)
    return *rows, *blend, *weights, draw(B, H, K, K), _padding(B, T, padded), 64e-5


def mamba2_mix(
    B: int, T: int, H: int, groups: int, P: int, N: int, norm: str = "after", padded: bool = False
) -> tuple[Any, ...]:
    draw = random(B + T + H + P + N)
    mixed, dt, z = draw(B, T, H * P + 2 * groups * N), 3 * draw(B, T, H), draw(B, T, H * P)
    gain = draw(H * P) if norm != "none" else None
    limit = (0.1, 2.0) if padded else (0.0, float("inf"))
    heads = draw(H), draw(H), draw(H)
    return mixed, dt, z, *heads, gain, draw(B, H, P, N), _padding(B, T, padded), groups, norm == "before", 1e-5, limit


def mamba_mix(B: int, T: int, E: int, N: int, padded: bool = False) -> tuple[Any, ...]:
    draw = random(B + T + E + N)
    rows = draw(B, T, E), 3 * draw(B, T, E), draw(B, T, E), draw(B, T, N), draw(B, T, N)
    return *rows, draw(E, N), draw(E), draw(E), draw(B, E, N), _padding(B, T, padded)


def short_conv(B: int, T: int, C: int, size: int, bias: bool = False, activate: bool = False) -> tuple[Any, ...]:
    draw = random(B + T + C)
    return draw(B, T, C), draw(B, size - 1, C), draw(C, size), draw(C) if bias else None, activate


def head_rows(B: int, T: int, H: int, D: int, R: int, norm: bool) -> tuple[Any, ...]:
    draw = random(B + T + H + D)
    turns = (draw(B, T, 1, R), draw(B, T, 1, R)) if R else (None, None)
    return draw(B, T, H, D), draw(D) if norm else None, *turns, 1.0, 1e-6


def attend(T: int, H: int, G: int, D: int, *before: int) -> tuple[Any, ...]:
    B, rows, draw = len(before), max(before) + T, random(T + H + D)
    stores = (draw(B, G, rows + 3, D) for _ in range(2))
    new = draw(B, T, G, D), draw(B, T, G, D)
    return 2 * draw(B, T, H, D), *new, *stores, before, None if H == G else 0.3


def of_rows(*widths: int) -> Callable[..., tuple[Any, ...]]:
    """x [rows, D] and so many weights [D]."""
    return lambda rows, D: (3 * random(D)(rows, D) + 1, *(random(D + n)(D) for n in widths))


def _codes(M: int, N: int, K: int, group: int, scales: torch.dtype, wild: bool) -> tuple[Tensor, ...]:
    """x, random bytes and scales; `wild`: a row of zeros and scales from the smallest to the largest fp16."""
    draw = random(M + N + K)
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
    offset = (-7 * scale.float() + random(K)(*scale.shape)).clamp(-6e4, 6e4).to(scales) if zero else None
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
    draw = random(M + N + K)
    return draw(M, K), draw(N, K).to(stored)


def low_rank(
    B: int, T: int, N: int, K: int, rank: int, whole: bool = False, stored: torch.dtype = torch.float32
) -> tuple[Any, ...]:
    """`whole`: with gain and bias, and a strength for each of the B rows, of which the second's is 0."""
    draw = random(B + T + N + K + rank)
    pair = draw(rank, K).to(stored), draw(N, rank).to(stored)
    strength = draw(B) * (torch.arange(B) != 1) if whole else 0.7
    vectors = (draw(N), draw(N)) if whole else (None, None)
    return draw(B, T, N), draw(B, T, K), *pair, draw(B, T, N), *vectors, 0.3, strength


def largest(B: int, V: int, count: int, levels: float = 0) -> tuple[Any, ...]:
    """`levels`: so few that many values are equal."""
    x = random(B + V)(B, V)
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
        lambda B, T, D, M: (random(1)(B, T, D), random(2)(B, 1, D), random(3)(M, D)),
        shapes=[(1, 1, 1024, 6), (2, 5, 33, 1), (3, 65, 7, 2)],
        declined=[],
    ),
    "rms_norm": Samples(
        lambda rows, D: (*of_rows(1)(rows, D), 1.0, 1e-6), shapes=[(1, 1024), (5, 33), (65, 1)], declined=[]
    ),
    "layer_norm": Samples(lambda rows, D: (*of_rows(1, 2)(rows, D), 1e-5), shapes=[(1, 1024), (65, 33)], declined=[]),
    "gated_silu": Samples(
        lambda rows, D: (20 * random(1)(rows, D), random(2)(rows, D), 1.3),
        shapes=[(1, 3584), (5, 33), (1, 1), (40, 1000)],
        declined=[],
    ),
    "sigmoid_gate": Samples(
        lambda rows, D: (random(1)(rows, D), 20 * random(2)(rows, D)),
        shapes=[(1, 2048), (5, 33), (1, 1)],
        declined=[],
    ),
    "activate": Samples(
        lambda rows, D, kind, size: (size * random(1)(rows, D), kind),
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
            (2, 6, 2, 80, 37),  # three query heads a key head
            (1, 3, 1, 136, 130),
            (17, 4, 1, 8, 4),  # the first that has blocks of queries
            (40, 6, 2, 17, 70, 5, 0),
            (150, 4, 1, 72, 61),  # in several parts
            (70, 2, 2, 256, 0),
        ],
        declined=[(1, 1, 1, 264, 4), (17, 1, 1, 264, 4)],
    ),
}
