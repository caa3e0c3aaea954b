"""Torch's product of many rows in half precision, with memory that ends."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)
FEW, STEP = 16, 8  # rows


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in], weight [out, in] -> x W^T [..., out] in x's dtype.

    On the CPU torch's oneDNN compiles half-precision products for each number of rows and keeps up to 1,024 of them,
    half a MB each, and a stream has texts of all lengths. So there the rows are filled up to one of few sizes.
    """
    weight = weight.to(x.dtype)
    rows = x.shape[:-1].numel()
    if x.dtype not in _HALF or x.device.type != "cpu" or (full := size(rows)) == rows or torch.is_grad_enabled():
        return F.linear(x, weight)
    flat = F.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, full - rows))
    return F.linear(flat, weight)[:rows].reshape(*x.shape[:-1], weight.shape[0])


def size(rows: int) -> int:
    """At least `rows`: itself up to `FEW`, else the next multiple of `STEP` and of an eighth of the octave."""
    step = 1 if rows <= FEW else max(STEP, 1 << (rows - 1).bit_length() - 4)
    return -(-rows // step) * step
