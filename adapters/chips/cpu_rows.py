"""The CPU: norms, short convolutions, activations and attention, a native call each."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from fluvial.adapters import native
from fluvial.adapters.chips.cpu import at, contiguous, plain, same, some, threads
from fluvial.adapters.ops import kernel

TAPS = 16  # of a convolution at most, as in kernels/short_conv.cpp
WIDTH = 256  # channels of an attention head at most, as in kernels/attend.cpp
ACTIVATIONS = ("tanh", "sigmoid")  # as in kernels/rows.cpp

_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


def _short_conv(x: Tensor, past: Tensor, taps: Tensor, bias: Tensor | None, activate: bool) -> bool:
    if not some(x, None) or taps.ndim != 2:
        return False
    (B, _, C), size = x.shape, taps.shape[1]
    more = () if bias is None else (bias,)
    fits = 2 <= size <= TAPS and past.shape == (B, size - 1, C) and taps.shape[0] == C and same((C,), *more)
    return fits and plain(x, past, taps, *more)


def _token_shift(x: Tensor, past: Tensor, mu: Tensor) -> bool:
    fits = some(x, None) and past.shape == (x.shape[0], 1, x.shape[2]) and mu.shape[1:] == x.shape[2:]
    return fits and mu.ndim == 2 and plain(x, past, mu)


def _rms_norm(x: Tensor, gain: Tensor, offset: float, eps: float) -> bool:
    return x.numel() > 0 and x.shape[-1:] == gain.shape and plain(x, gain)


def _layer_norm(x: Tensor, gain: Tensor, shift: Tensor, eps: float) -> bool:
    return x.numel() > 0 and x.shape[-1:] == gain.shape == shift.shape and plain(x, gain, shift)


def _gated_silu(gate: Tensor, up: Tensor, scale: float) -> bool:
    return gate.numel() > 0 and gate.shape == up.shape and plain(gate, up)


def _head_rows(
    x: Tensor, gain: Tensor | None, cos: Tensor | None, sin: Tensor | None, offset: float, eps: float
) -> bool:
    if x.ndim != 4 or x.numel() == 0 or (cos is None) != (sin is None):
        return False
    B, T, _, D = x.shape
    more = () if gain is None else (gain,)
    if cos is None or sin is None:
        return same((D,), *more) and plain(x, *more)
    fits = cos.ndim == 4 and 2 * cos.shape[3] <= D and same((B, T, 1, cos.shape[-1]), cos, sin) and same((D,), *more)
    return fits and plain(x, *more, cos, sin)


def _sigmoid_gate(x: Tensor, gate: Tensor) -> bool:
    return x.numel() > 0 and x.shape == gate.shape and plain(x, gate)


def _activate(x: Tensor, kind: str) -> bool:
    return x.numel() > 0 and kind in ACTIVATIONS and plain(x)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, k_store: Tensor, v_store: Tensor, before: tuple[int, ...], scale: float | None
) -> bool:
    if q.ndim != 4 or k_store.ndim != 4 or q.shape[1] < 1 or q.dtype not in (torch.float32, torch.bfloat16):
        return False
    (B, T, H, D), (_, G, rows, _), step = q.shape, k_store.shape, k_store.stride()
    if G == 0 or k_store.shape != (B, G, rows, D) or v_store.shape != (B, G, rows, D) or len(before) != B:
        return False
    for t in (k, v, k_store, v_store):
        if t.dtype is not q.dtype or not t.is_cpu or (t.requires_grad and torch.is_grad_enabled()):
            return False
    return (
        1 <= D <= WIDTH
        and H % G == 0
        and same((B, T, G, D), k, v)
        and step == v_store.stride()
        and step[2:] == (D, 1)
        and min(before) >= 0
        and max(before) + T <= rows
        and q.is_cpu
        and not (q.requires_grad and torch.is_grad_enabled())
    )


def _register(library: native.Library) -> None:
    label = f"C++ {library.sets[-1]}"
    conv = library.kernel("short_conv", [_POINTER] * 6 + [_SIZE] * 6)
    shift_by = library.kernel("token_shift", [_POINTER] * 5 + [_SIZE] * 5)
    rms = library.kernel("rms_norm", [_POINTER] * 3 + [_SIZE] * 2 + [_FLOAT] * 2 + [_SIZE])
    layer = library.kernel("layer_norm", [_POINTER] * 4 + [_SIZE] * 2 + [_FLOAT, _SIZE])
    silu = library.kernel("gated_silu", [_POINTER] * 3 + [_SIZE, _FLOAT, _SIZE])
    heads = library.kernel("head_rows", [_POINTER] * 5 + [_SIZE] * 7 + [_FLOAT] * 2 + [_SIZE])
    gate_by = library.kernel("sigmoid_gate", [_POINTER] * 3 + [_SIZE] * 2)
    through = library.kernel("activate", [_POINTER] * 2 + [_SIZE] * 3)
    softmax = library.kernel("attend", [_POINTER] * 7 + [_SIZE] * 6 + [_FLOAT, _SIZE])

    @kernel("short_conv", "cpu", label=label, accepts=_short_conv)
    def short_conv(*args: Any, instructions: str | None = None) -> tuple[Tensor, Tensor]:
        x, _, taps, _ = given = contiguous(args[:4])
        (B, T, C), size = x.shape, taps.shape[1]
        y, rows = torch.empty_like(x), x.new_empty(B, size - 1 + T, C)
        conv(instructions)(*at(*given, rows, y), B, T, C, size, args[4], threads(x.numel()))
        return y, rows

    @kernel("token_shift", "cpu", label=label, accepts=_token_shift)
    def token_shift(*args: Any, instructions: str | None = None) -> tuple[Tensor, Tensor]:
        x, _, mu = given = contiguous(args)
        B, T, D = x.shape
        mixes, rows = x.new_empty(mu.shape[0], B, T, D), x.new_empty(B, 1 + T, D)
        shift_by(instructions)(*at(*given, rows, mixes), mu.shape[0], B, T, D, threads(x.numel()))
        return mixes, rows

    @kernel("rms_norm", "cpu", label=label, accepts=_rms_norm)
    def rms_norm(x: Tensor, gain: Tensor, offset: float, eps: float, *, instructions: str | None = None) -> Tensor:
        given, width = contiguous((x, gain)), gain.numel()
        y = torch.empty_like(given[0])
        rms(instructions)(*at(*given, y), x.numel() // width, width, offset, eps, threads(x.numel()))
        return y

    @kernel("layer_norm", "cpu", label=label, accepts=_layer_norm)
    def layer_norm(x: Tensor, gain: Tensor, shift: Tensor, eps: float, *, instructions: str | None = None) -> Tensor:
        given, width = contiguous((x, gain, shift)), gain.numel()
        y = torch.empty_like(given[0])
        layer(instructions)(*at(*given, y), x.numel() // width, width, eps, threads(x.numel()))
        return y

    @kernel("gated_silu", "cpu", label=label, accepts=_gated_silu)
    def gated_silu(gate: Tensor, up: Tensor, scale: float, *, instructions: str | None = None) -> Tensor:
        given = contiguous((gate, up))
        y = torch.empty_like(given[0])
        silu(instructions)(*at(*given, y), y.numel(), scale, threads(y.numel()))
        return y

    @kernel("head_rows", "cpu", label=label, accepts=_head_rows)
    def head_rows(*args: Any, instructions: str | None = None) -> Tensor:
        x, *rest = args
        B, T, H, D = x.shape
        if x.stride(3) != 1 or (B > 1 and x.stride(0) != T * x.stride(1)):
            x = x.contiguous()
        given, y = contiguous(rest[:3]), x.new_empty(B, T, H, D)
        R = 0 if rest[1] is None else rest[1].shape[3]
        heads(instructions)(*at(x, *given, y), B, T, H, D, R, x.stride(1), x.stride(2), *rest[3:], threads(x.numel()))
        return y

    @kernel("sigmoid_gate", "cpu", label=label, accepts=_sigmoid_gate)
    def sigmoid_gate(x: Tensor, gate: Tensor, *, instructions: str | None = None) -> Tensor:
        given = contiguous((x, gate))
        y = torch.empty_like(given[0])
        gate_by(instructions)(*at(*given, y), y.numel(), threads(y.numel()))
        return y

    @kernel("activate", "cpu", label=label, accepts=_activate)
    def activate(x: Tensor, kind: str, *, instructions: str | None = None) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        through(instructions)(*at(x, y), y.numel(), ACTIVATIONS.index(kind), threads(y.numel()))
        return y

    @kernel("attend", "cpu", label=label, accepts=_attend)
    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_store: Tensor,
        v_store: Tensor,
        before: tuple[int, ...],
        scale: float | None,
        *,
        instructions: str | None = None,
    ) -> Tensor:
        given = contiguous((q, k, v))
        (B, T, H, D), G = q.shape, k.shape[2]
        o, about = torch.empty_like(given[0]), native.numbers((k_store.stride(1), k_store.stride(0), *before), k_store)
        sizes = (B, T, H, G, D, q.dtype == torch.bfloat16, scale or D**-0.5, torch.get_num_threads())
        softmax(instructions)(*at(*given, k_store, v_store, o), about, *sizes)
        return o


if (_library := native.library()) is not None:
    _register(_library)
