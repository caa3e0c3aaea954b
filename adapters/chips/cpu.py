"""The CPU: C++ kernels for the ops whose torch reference is many small steps.

Besides the op's arguments a kernel takes `instructions`, the copy to run ("baseline", "avx2", "avx512"): the widest
that the CPU runs, unless a test asks for another.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from fluvial.adapters import native
from fluvial.adapters.ops import kernel

STEP_TOKENS = 16  # above, the reference's chunk form does less work per token
# Multiply-adds below which threads cost more than they save. Torch's threads wait in a busy loop: on a busy machine a
# parallel region may last a time slice (8 ms), so only a step that is long anyway asks for them.
THREADED = 1 << 18

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


def _plain(*tensors: Tensor) -> bool:
    """fp32 in this machine's memory, and no gradient wanted."""
    learning = torch.is_grad_enabled()
    return all(t.dtype == torch.float32 and t.is_cpu and not (learning and t.requires_grad) for t in tensors)


def _threads(work: int) -> int:
    return torch.get_num_threads() if work >= THREADED else 1


def _accepts_gated_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor) -> bool:
    if q.ndim != 4 or v.ndim != 4 or not 1 <= q.shape[1] <= STEP_TOKENS:
        return False
    (B, T, H, K), V = q.shape, v.shape[-1]
    return (
        k.shape == q.shape
        and v.shape == (B, T, H, V)
        and g.shape == beta.shape == (B, T, H)
        and S.shape == (B, H, K, V)
        and _plain(q, k, v, g, beta, S)
    )


def _register(library: native.Library) -> None:
    step = library.kernel("gated_delta_step", [_POINTER] * 9 + [_SIZE] * 6)
    label = f"C++ {library.sets[-1]}"

    @kernel("gated_delta", "cpu", label=f"{label}, up to {STEP_TOKENS} tokens", accepts=_accepts_gated_delta)
    def gated_delta_step(
        q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, S: Tensor, *, instructions: str | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = tuple(t.contiguous() for t in (q, k, v, g, beta, S))  # named, so that a copy outlives the call
        (B, T, H, K), V = q.shape, v.shape[-1]
        o, delta, S_end = v.new_empty(B, T, H, V), v.new_empty(B, T, H, V), S.new_empty(B, H, K, V)
        pointers = [t.data_ptr() for t in (*inputs, o, delta, S_end)]
        step(instructions)(*pointers, B, T, H, K, V, _threads(B * T * H * K * V))
        return o, delta, S_end


if (_library := native.library()) is not None:
    _register(_library)
