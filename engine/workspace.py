"""How much memory a forward takes beside weights and state: its real code run on torch's meta device, where tensors
have shapes and no values, with every tensor counted from when it is made to when it is let go.

Matrices in few bits are multiplied as the CPU's kernels do, without unpacking; recurrences and softmax attention hold
their results alone: these are written in as shapes. Where there are no kernels it is more. What a library allocates
inside one operation is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter

from fluvial.adapters.ops import kernel, registered
from fluvial.models import decoder  # noqa: F401  (its mixers register their ops)


class Live(TorchDispatchMode):
    """Inside, `most` grows to the most bytes that tensors held at one time, without those of `known`."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.most = 0
        self._held = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.now -= size


class _NoScores(TorchFunctionMode):
    """Softmax attention as a shape."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and args[0].is_meta:
            q, _, v = args[:3]
            return q.new_empty(*q.shape[:-1], v.shape[-1])
        return func(*args, **(kwargs or {}))


def _output_only(rows_of: Callable[..., int]) -> Callable[..., Tensor]:
    return lambda x, *parts: x.new_empty(*x.shape[:-1], rows_of(*parts))


def _ends(reference: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """What a kernel allocates: its results, and inputs in order where they are not."""

    def run(*args: Any) -> tuple[Tensor, ...]:
        args = tuple(arg.contiguous() if isinstance(arg, Tensor) else arg for arg in args)
        with _disable_current_modes():
            shapes = [result.shape for result in reference(*args)]
        return tuple(args[0].new_empty(shape) for shape in shapes)

    return run


for _name, _op in registered().items():
    if _name.endswith("_mix"):
        kernel(_name, "meta", label="shape only", accepts=lambda *_: True)(_ends(_op.reference))
for _name in ("int4_linear", "int8_linear", "dense_linear"):
    kernel(_name, "meta", label="shape only", accepts=lambda *_: True)(_output_only(lambda q, *_: int(q.shape[0])))


@torch.no_grad()
def peak(run: Callable[[], object], known: Iterable[Tensor]) -> int:
    """The most bytes that `run` on the meta device holds at one time, beside the tensors `known`."""
    live = Live(known)
    with _NoScores(), live:
        result = run()
    del result
    return live.most
