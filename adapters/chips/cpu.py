"""The CPU: what its C++ kernels share, for the ops whose torch reference is many small steps (`cpu_*.py`).

Besides the op's arguments a kernel takes `instructions`, the copy to run ("baseline", "avx2", "avx512"): the widest
that the CPU runs, unless a test asks for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

STEP_TOKENS = 16  # of a handful: above, chunk forms do less work per token
# Multiply-adds below which threads cost more than they save. Torch's threads wait in a busy loop: on a busy machine a
# parallel region may last a time slice (8 ms), so only a step that is long anyway asks for them.
THREADED = 1 << 18


def plain(*tensors: Tensor) -> bool:
    """fp32 in this machine's memory, and no gradient wanted."""
    for t in tensors:  # a loop: this runs on every call
        if t.dtype is not torch.float32 or not t.is_cpu:
            return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def threads(work: int) -> int:
    return torch.get_num_threads() if work >= THREADED else 1


def some(rows: Tensor, padding: Tensor | None) -> bool:
    """rows [B, T, D] of at least a token, and a padding that fits them."""
    if rows.ndim != 3 or rows.shape[1] < 1:
        return False
    return padding is None or (padding.shape == rows.shape[:2] and padding.dtype == torch.bool and padding.is_cpu)


def same(shape: tuple[int, ...], *tensors: Tensor) -> bool:
    """Whether all have that shape."""
    return [t.shape for t in tensors].count(torch.Size(shape)) == len(tensors)


def contiguous(tensors: Sequence[Tensor | None]) -> list[Any]:
    """What a kernel reads; to be kept under a name during the call, so that a copy outlives it."""
    return [None if t is None else t.contiguous() for t in tensors]


def at(*tensors: Tensor | None) -> list[int | None]:
    """The addresses that a kernel takes."""
    return [None if t is None else t.data_ptr() for t in tensors]
