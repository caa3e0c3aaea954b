"""The CPU around the layers: an embedding's rows and the likeliest tokens, a native call each instead of torch's sort
of the vocabulary and its many small steps."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fluvial.adapters import choice, native
from fluvial.adapters.chips.cpu import plain, threads
from fluvial.adapters.chips.cpu_linear import int4_codes, int8_codes
from fluvial.adapters.ops import kernel

FEW = 16  # ids: more are not looked at one by one
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


def _largest(rows: Tensor, count: int) -> bool:
    return rows.ndim == 2 and len(rows) > 0 and 0 < count <= rows.shape[1] and plain(rows)


def _few(ids: Tensor, rows: int) -> bool:
    """Whether they are a few ids of so many rows."""
    if ids.dtype is not torch.int64 or not 0 < (count := ids.numel()) <= FEW:
        return False
    if count == 1:
        return 0 <= ids.item() < rows
    return all(0 <= id < rows for id in ids.flatten().tolist())


def _int4_rows(ids: Tensor, q: Tensor, scale: Tensor, offset: Tensor | None) -> bool:
    return int4_codes(q, scale, offset) and _few(ids, len(q))


def _int8_rows(ids: Tensor, q: Tensor, scale: Tensor) -> bool:
    return int8_codes(q, scale) and _few(ids, len(q))


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
        largest(instructions)(rows.data_ptr(), values.data_ptr(), ids.data_ptr(), B, V, count, threads(B * V))
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
