"""The CPU around the layers: an embedding's rows and the likeliest tokens, a native call each instead of torch's sort
of the vocabulary and its many small steps."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fluvial.adapters import choice, native
from fluvial.adapters.chips.cpu import plain
from fluvial.adapters.ops import kernel

FEW = 16  # ids: more are not looked at one by one
GROUPS = (32, 64, 128, 256)
_HALF = (torch.float16, torch.bfloat16)
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


def _largest(rows: Tensor, count: int) -> bool:
    return rows.ndim == 2 and len(rows) > 0 and 0 < count <= rows.shape[1] and plain(rows)


def _rows(ids: Tensor, q: Tensor, scale: Tensor, width: int) -> bool:
    if q.ndim != 2 or scale.ndim != 2 or scale.dtype not in _HALF or not 0 < ids.numel() <= FEW:
        return False
    if ids.dtype is not torch.int64 or (torch.is_grad_enabled() and scale.requires_grad):
        return False
    out, groups = scale.shape
    fits = out == q.shape[0] and groups > 0 and width / groups in GROUPS
    return fits and all(0 <= id < out for id in ids.flatten().tolist())


def _int4_rows(ids: Tensor, q: Tensor, scale: Tensor, offset: Tensor | None) -> bool:
    if q.dtype is not torch.uint8 or not _rows(ids, q, scale, 2 * q.shape[-1]):
        return False
    if offset is None:
        return True
    like = offset.shape == scale.shape and offset.dtype is scale.dtype
    return like and not (torch.is_grad_enabled() and offset.requires_grad)


def _int8_rows(ids: Tensor, q: Tensor, scale: Tensor) -> bool:
    return q.dtype is torch.int8 and _rows(ids, q, scale, q.shape[-1])


def _register(library: native.Library) -> None:
    largest = library.kernel("largest", [_POINTER] * 3 + [_SIZE] * 4)
    int4 = library.kernel("int4_rows", [_POINTER] * 5 + [_SIZE] * 4)
    int8 = library.kernel("int8_rows", [_POINTER] * 4 + [_SIZE] * 4)
    label = f"C++ {library.sets[-1]}"

    @kernel(choice.largest.name, "cpu", label=label, accepts=_largest)
    def run_largest(rows: Tensor, count: int, *, instructions: str | None = None) -> tuple[Tensor, Tensor]:
        rows = rows.contiguous()
        B, V = rows.shape
        values, ids = rows.new_empty(B, count), torch.empty(B, count, dtype=torch.int64)
        most = torch.get_num_threads() if B > 1 else 1
        largest(instructions)(rows.data_ptr(), values.data_ptr(), ids.data_ptr(), B, V, count, most)
        return values, ids

    @kernel("int4_rows", "cpu", label=f"{label}, up to {FEW}", accepts=_int4_rows)
    def run_int4(
        ids: Tensor, q: Tensor, scale: Tensor, offset: Tensor | None, *, instructions: str | None = None
    ) -> Tensor:
        ids, q, scale, columns = ids.contiguous(), q.contiguous(), scale.contiguous(), 2 * q.shape[1]
        offset = None if offset is None else offset.contiguous()
        y = torch.empty(*ids.shape, columns)
        shift = None if offset is None else offset.data_ptr()
        pointers = q.data_ptr(), scale.data_ptr(), shift, ids.data_ptr(), y.data_ptr()
        int4(instructions)(*pointers, ids.numel(), columns, columns // scale.shape[1], scale.dtype is torch.bfloat16)
        return y

    @kernel("int8_rows", "cpu", label=f"{label}, up to {FEW}", accepts=_int8_rows)
    def run_int8(ids: Tensor, q: Tensor, scale: Tensor, *, instructions: str | None = None) -> Tensor:
        ids, q, scale, columns = ids.contiguous(), q.contiguous(), scale.contiguous(), q.shape[1]
        y = torch.empty(*ids.shape, columns)
        pointers = q.data_ptr(), scale.data_ptr(), ids.data_ptr(), y.data_ptr()
        int8(instructions)(*pointers, ids.numel(), columns, columns // scale.shape[1], scale.dtype is torch.bfloat16)
        return y


if (_library := native.library()) is not None:
    _register(_library)
