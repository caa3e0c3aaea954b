"""The CPU's products with weight matrices: int4, int8, bf16 and fp32, without unpacking them.

A decode step reads every matrix once and is bound by memory, so a kernel reads nothing but the stored bytes. For int4
and int8 x becomes whole numbers (kernels/units.h): of fp32 as much as fp32 sums would keep, of bf16 the first 16 bits
below the largest of 32 columns, or what `x_bits` says. They are the same for any number of rows and on every
instruction set. bf16 and fp32 weights are multiplied in fp32.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fluvial.adapters import native
from fluvial.adapters.chips.cpu import threads
from fluvial.adapters.ops import kernel

FEW = 16  # rows of x up to which torch's own product of one dtype is slower
GROUPS = (32, 64, 128, 256)  # kernels/codes.h spreads a scale over at most 16 times 32 columns

_HALF = (torch.float16, torch.bfloat16)
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _rows(x: Tensor, columns: int) -> int:
    """How many rows x [..., columns] has; 0 if it is not that, or has a dtype that the kernels do not take."""
    if columns == 0 or columns % 32 or x.shape[-1] != columns:
        return 0
    return x.numel() // columns if x.dtype in (torch.float32, torch.bfloat16) else 0


def _codes(q: Tensor, scale: Tensor, columns: int, *more: Tensor) -> bool:
    """Whether the kernels take codes with these scales as a matrix of so many columns."""
    if q.ndim != 2 or scale.ndim != 2 or scale.dtype not in _HALF:
        return False
    out, groups = scale.shape
    fits = out == q.shape[0] and groups > 0 and columns / groups in GROUPS
    return fits and not _wants_gradient(scale, *more)


def int4_codes(q: Tensor, scale: Tensor, offset: Tensor | None) -> bool:
    """Whether the kernels take these parts of an int4 matrix (formats/int4.py)."""
    if q.dtype is not torch.uint8:
        return False
    if offset is None:
        return _codes(q, scale, 2 * q.shape[-1])
    same = offset.shape == scale.shape and offset.dtype == scale.dtype
    return same and _codes(q, scale, 2 * q.shape[-1], offset)


def int8_codes(q: Tensor, scale: Tensor) -> bool:
    """Whether the kernels take these parts of an int8 matrix (formats/int8.py)."""
    return q.dtype is torch.int8 and _codes(q, scale, q.shape[-1])


def _activations(x: Tensor, columns: int, x_bits: int | None) -> bool:
    return x_bits in (None, 8) and _rows(x, columns) > 0 and not _wants_gradient(x)


def _accepts_int4(x: Tensor, q: Tensor, scale: Tensor, offset: Tensor | None, x_bits: int | None = None) -> bool:
    return int4_codes(q, scale, offset) and _activations(x, 2 * q.shape[-1], x_bits)


def _accepts_int8(x: Tensor, q: Tensor, scale: Tensor, x_bits: int | None = None) -> bool:
    return int8_codes(q, scale) and _activations(x, q.shape[-1], x_bits)


def _accepts_dense(x: Tensor, weight: Tensor) -> bool:
    if weight.ndim != 2 or weight.dtype not in (torch.float32, torch.bfloat16):
        return False
    rows = _rows(x, weight.shape[1])
    # of many rows in bf16 the CPU's bf16 instructions make more than fp32 sums can
    if not rows or (rows > FEW and (weight.dtype is x.dtype or x.dtype is torch.bfloat16)):
        return False
    return not _wants_gradient(x, weight)


def _register(library: native.Library) -> None:
    int4 = library.kernel("int4_linear", [_POINTER] * 5 + [_SIZE] * 8)
    int8 = library.kernel("int8_linear", [_POINTER] * 4 + [_SIZE] * 8)
    dense = library.kernel("dense_linear", [_POINTER] * 3 + [_SIZE] * 6)
    label = f"C++ {library.sets[-1]}"
    bf16 = torch.bfloat16

    def prepared(x: Tensor, out: int) -> tuple[Tensor, Tensor, int, int, int]:
        x = x.contiguous()
        *batch, columns = x.shape
        rows = x.numel() // columns
        return x, x.new_empty(*batch, out), rows, columns, threads(rows * out * columns)

    def width(x: Tensor, x_bits: int | None) -> int:
        """Bytes of the whole numbers that x becomes."""
        return x_bits // 8 if x_bits else 2 if x.dtype is bf16 else 3

    @kernel("int4_linear", "cpu", label=label, accepts=_accepts_int4)
    def int4_linear(
        x: Tensor,
        q: Tensor,
        scale: Tensor,
        offset: Tensor | None,
        x_bits: int | None = None,
        *,
        instructions: str | None = None,
    ) -> Tensor:
        out, groups = scale.shape
        x, y, rows, columns, most = prepared(x, out)
        q, scale = q.contiguous(), scale.contiguous()  # named, so that a copy outlives the call
        offset = None if offset is None else offset.contiguous()
        shift = None if offset is None else offset.data_ptr()
        pointers = x.data_ptr(), q.data_ptr(), scale.data_ptr(), shift, y.data_ptr()
        sizes = rows, out, columns, columns // groups, x.dtype is bf16, scale.dtype is bf16, width(x, x_bits), most
        int4(instructions)(*pointers, *sizes)
        return y

    @kernel("int8_linear", "cpu", label=label, accepts=_accepts_int8)
    def int8_linear(
        x: Tensor, q: Tensor, scale: Tensor, x_bits: int | None = None, *, instructions: str | None = None
    ) -> Tensor:
        out, groups = scale.shape
        x, y, rows, columns, most = prepared(x, out)
        q, scale = q.contiguous(), scale.contiguous()
        pointers = x.data_ptr(), q.data_ptr(), scale.data_ptr(), y.data_ptr()
        sizes = rows, out, columns, columns // groups, x.dtype is bf16, scale.dtype is bf16, width(x, x_bits), most
        int8(instructions)(*pointers, *sizes)
        return y

    @kernel("dense_linear", "cpu", label=f"{label}, up to {FEW} rows", accepts=_accepts_dense)
    def dense_linear(x: Tensor, weight: Tensor, *, instructions: str | None = None) -> Tensor:
        x, y, rows, columns, _ = prepared(x, weight.shape[0])
        weight = weight.contiguous()
        most = threads(max(rows, weight.element_size()) * weight.numel())  # of few rows reading W takes longest
        sizes = rows, y.shape[-1], columns, x.dtype is bf16, weight.dtype is bf16, most
        dense(instructions)(x.data_ptr(), weight.data_ptr(), y.data_ptr(), *sizes)
        return y


if (_library := native.library()) is not None:
    _register(_library)
