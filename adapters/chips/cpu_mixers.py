"""The CPU: all that a recurrent mixer does between its projections, in one native call: step by step for a handful of
tokens (decode, drafts), in chunks above; Mamba, which has no chunk form, by one scan.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluvial.adapters import native
from fluvial.adapters.chips.cpu import STEP_TOKENS, at, contiguous, plain, same, some, threads
from fluvial.adapters.ops import kernel

WIDTH = 256  # rows of a memory at most, as in kernels/memory.h

_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


def _gated_delta(
    rows: Tensor, a: Tensor, b: Tensor, z: Tensor, A_log: Tensor, dt_bias: Tensor, gain: Tensor, S: Tensor,
    padding: Tensor | None, k_heads: int, hard: bool, beta_scale: float, qk_eps: float, norm_eps: float,
) -> bool:  # fmt: skip
    if not some(rows, padding) or S.ndim != 4:
        return False
    (B, T, width), (_, H, K, V) = rows.shape, S.shape
    return (
        1 <= K <= WIDTH
        and H % k_heads == 0
        and width == 2 * k_heads * K + H * V
        and S.shape[0] == B
        and same((B, T, H), a, b)
        and z.shape == (B, T, H * V)
        and same((H,), A_log, dt_bias)
        and gain.shape == (V,)
        and plain(rows, a, b, z, A_log, dt_bias, gain, S)
    )


def _rwkv7(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, g: Tensor, v_first: Tensor | None, v_gate: Tensor | None,
    k_k: Tensor, k_a: Tensor, r_k: Tensor, gain: Tensor, shift: Tensor, S: Tensor, padding: Tensor | None, eps: float,
) -> bool:  # fmt: skip
    if not some(r, padding) or S.ndim != 4 or (v_first is None) != (v_gate is None):
        return False
    (B, _, D), (_, H, K, V) = r.shape, S.shape
    blend = () if v_first is None or v_gate is None else (v_first, v_gate)
    return (
        1 <= K <= WIDTH
        and K == V
        and H * K == D
        and S.shape[0] == B
        and same(r.shape, w, k, v, a, g, *blend)
        and same((D,), k_k, k_a, gain, shift)
        and r_k.shape == (H, K)
        and plain(r, w, k, v, a, g, *blend, k_k, k_a, r_k, gain, shift, S)
    )


def _mamba2(
    mixed: Tensor, dt: Tensor, z: Tensor, A_log: Tensor, dt_bias: Tensor, D: Tensor, gain: Tensor | None, h: Tensor,
    padding: Tensor | None, norm_groups: int, norm_before: bool, eps: float, dt_limit: tuple[float, float],
) -> bool:  # fmt: skip
    if not some(mixed, padding) or h.ndim != 4:
        return False
    (B, T, width), (_, H, P, N) = mixed.shape, h.shape
    norm = () if gain is None else (gain,)
    return (
        N >= 1
        and H * P % norm_groups == 0
        and width > H * P
        and (width - H * P) % (2 * N) == 0
        and H % ((width - H * P) // (2 * N)) == 0
        and h.shape[0] == B
        and dt.shape == (B, T, H)
        and z.shape == (B, T, H * P)
        and same((H,), A_log, dt_bias, D)
        and same((H * P,), *norm)
        and plain(mixed, dt, z, A_log, dt_bias, D, *norm, h)
    )


def _mamba(
    u: Tensor, dt: Tensor, z: Tensor, B: Tensor, C: Tensor, A_log: Tensor, dt_bias: Tensor, D: Tensor, h: Tensor,
    padding: Tensor | None,
) -> bool:  # fmt: skip
    if not some(u, padding) or A_log.ndim != 2:
        return False
    (batch, T, E), N = u.shape, A_log.shape[1]
    return (
        1 <= N <= WIDTH
        and same(u.shape, dt, z)
        and same((batch, T, N), B, C)
        and A_log.shape == (E, N)
        and same((E,), dt_bias, D)
        and h.shape == (batch, E, N)
        and plain(u, dt, z, B, C, A_log, dt_bias, D, h)
    )


def forms(library: native.Library, name: str, arguments: list[Any]) -> Callable[[int, str | None], native.Function]:
    """The kernel of a mixer for T tokens: step by step up to `STEP_TOKENS`, in chunks above."""
    step, chunk = (library.kernel(f"{name}_{form}", arguments) for form in ("mix", "chunk"))
    return lambda tokens, instructions: (step if tokens <= STEP_TOKENS else chunk)(instructions)


def _register(library: native.Library) -> None:
    label = f"C++ {library.sets[-1]}"
    delta = forms(library, "gated_delta", [_POINTER] * 14 + [_SIZE] * 7 + [_FLOAT] * 3 + [_SIZE])
    rwkv = forms(library, "rwkv7", [_POINTER] * 22 + [_SIZE] * 4 + [_FLOAT, _SIZE])
    ssd = forms(library, "mamba2", [_POINTER] * 13 + [_SIZE] * 8 + [_FLOAT] * 3 + [_SIZE])
    scan = library.kernel("mamba_mix", [_POINTER] * 13 + [_SIZE] * 5)

    @kernel("gated_delta_mix", "cpu", label=label, accepts=_gated_delta)
    def gated_delta_mix(*args: Any, instructions: str | None = None) -> tuple[Tensor, ...]:
        rows, a, _, z, *_, S, _ = given = contiguous(args[:9])
        (B, T, _), (_, H, K, V) = rows.shape, S.shape
        y, k, delta_ = torch.empty_like(z), S.new_empty(B, T, H, K), S.new_empty(B, T, H, V)
        g, S_end = torch.empty_like(a), torch.empty_like(S)
        k_heads, hard, beta_scale, qk_eps, eps = args[9:]
        sizes = (B, T, H, k_heads, K, V, hard, beta_scale, qk_eps, eps, threads(B * T * H * K * V))
        delta(T, instructions)(*at(*given, y, k, delta_, g, S_end), *sizes)
        return y, k, delta_, g, S_end

    @kernel("rwkv7_mix", "cpu", label=label, accepts=_rwkv7)
    def rwkv7_mix(*args: Any, instructions: str | None = None) -> tuple[Tensor, ...]:
        given = contiguous(args[:15])
        r, S = given[0], given[13]
        (B, T, _), (_, H, K, _) = r.shape, S.shape
        y, rows, S_end = torch.empty_like(r), S.new_empty(5, B, T, H, K).unbind(), torch.empty_like(S)
        rwkv(T, instructions)(*at(*given, y, *rows, S_end), B, T, H, K, args[15], threads(B * T * H * K * K))
        return y, *rows, S_end

    @kernel("mamba2_mix", "cpu", label=label, accepts=_mamba2)
    def mamba2_mix(*args: Any, instructions: str | None = None) -> tuple[Tensor, ...]:
        mixed, dt, z, _, _, _, _, h, _ = given = contiguous(args[:9])
        (B, T, width), (_, H, P, N) = mixed.shape, h.shape
        y, X, log_decay, h_end = torch.empty_like(z), h.new_empty(B, T, H, P), torch.empty_like(dt), torch.empty_like(h)
        norm_groups, before, eps, (low, high) = args[9:]
        sizes = (B, T, H, (width - H * P) // (2 * N), P, N, norm_groups, before, low, high, eps)
        ssd(T, instructions)(*at(*given, y, X, log_decay, h_end), *sizes, threads(B * T * H * P * N))
        return y, X, log_decay, h_end

    @kernel("mamba_mix", "cpu", label=label, accepts=_mamba)
    def mamba_mix(*args: Any, instructions: str | None = None) -> tuple[Tensor, ...]:
        given = contiguous(args)
        u, h = given[0], given[8]
        (B, T, E), N = u.shape, h.shape[2]
        y, size, h_end = torch.empty_like(u), torch.empty_like(u), torch.empty_like(h)
        scan(instructions)(*at(*given, y, size, h_end), B, T, E, N, threads(4 * B * T * E * N))
        return y, size, h_end


if (_library := native.library()) is not None:
    _register(_library)
