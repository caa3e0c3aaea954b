"""The CPU: a plugin's low-rank update, a native call each, the same sums for any number of rows."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from fluvial.adapters import native
from fluvial.adapters.chips.cpu import plain, threads
from fluvial.adapters.ops import kernel

_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


def _accepts(*args: Any) -> bool:
    y, x, A, B, base, gain, bias, _, strength = args
    out, rank = B.shape
    fits = y.shape[-1] == out and x.shape[-1] == A.shape[1] and x.shape[:-1] == y.shape[:-1] and y.shape == base.shape
    if not fits or A.shape[0] != rank or x.numel() == 0 or y.numel() == 0:
        return False
    for vector in (gain, bias):
        if vector is not None and (vector.shape != (out,) or not plain(vector)):
            return False
    if isinstance(strength, Tensor) and (strength.shape != y.shape[:1] or not plain(strength)):
        return False
    stored = A.dtype is B.dtype and A.dtype in (torch.float32, torch.bfloat16) and A.is_cpu and B.is_cpu
    learning = torch.is_grad_enabled() and (A.requires_grad or B.requires_grad)
    return stored and not learning and plain(y, x, base)


def _register(library: native.Library) -> None:
    update = library.kernel("low_rank", [_POINTER] * 9 + [_SIZE] * 5 + [_FLOAT] + [_SIZE] * 2)

    @kernel("low_rank", "cpu", label=f"C++ {library.sets[-1]}", accepts=_accepts)
    def low_rank(*args: Any, instructions: str | None = None) -> Tensor:
        y, x, A, B, base, gain, bias, scale, strength = args
        strengths = native.floats(strength.tolist() if isinstance(strength, Tensor) else [strength], A)
        y, x, rows, columns = y.contiguous(), x.contiguous(), A.contiguous(), B.mT.contiguous()
        base = y if gain is None else base.contiguous()
        gain, bias = (None if vector is None else vector.contiguous() for vector in (gain, bias))
        out, (rank, d_out) = torch.empty_like(y), columns.shape
        given = (y, x, rows, columns, base, gain, bias)
        M, d_in = y.numel() // d_out, x.shape[-1]
        pointers = (None if t is None or t.numel() == 0 else t.data_ptr() for t in given)
        sizes = M, d_out, d_in, rank, M // len(strengths), scale, A.dtype is torch.bfloat16
        update(instructions)(*pointers, strengths, out.data_ptr(), *sizes, threads(M * rank * (d_in + d_out)))
        return out


if (_library := native.library()) is not None:
    _register(_library)
