"""How much memory a forward takes beside weights and state: its real code run on torch's meta device, where tensors
have shapes and no values, with every tensor counted from when it is made to when it is let go.

Ops hold their results alone, as the CPU's kernels do, and so does torch's softmax attention: these are written in as
shapes. Where there are no kernels it is more. What a library allocates inside one operation is not seen.
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
from torch.utils._pytree import tree_iter, tree_map_only

from fluvial.adapters.ops import kernel, registered
from fluvial.models import decoder  # noqa: F401  (its mixers register their ops)


class Live(TorchDispatchMode):
    """Inside, `most` grows to the most bytes that tensors held at one time, without those of `known`."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.most = 0
        self._held = set[int]()
        for tensor in known:
            self._hold(tensor.untyped_storage(), 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._held:
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            self._hold(storage, storage.nbytes())

    def _hold(self, storage: torch.UntypedStorage, size: int) -> None:
        self._held.add(storage._cdata)
        weakref.finalize(storage, self._gone, storage._cdata, size).atexit = False

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


def _results_only(reference: Callable[..., Any]) -> Callable[..., Any]:
    """What a kernel allocates."""

    def run(*args: Any) -> Any:
        with _disable_current_modes():
            shapes = reference(*args)
        return tree_map_only(Tensor, torch.empty_like, shapes)

    return run


def _fp32(first: Tensor, *_: Any) -> bool:
    return first.dtype is torch.float32


_OF_ANY_DTYPE = ("_linear", "_mix", "attend")  # the CPU's other kernels take fp32 alone
for _name, _op in registered().items():
    _accepts = (lambda *_: True) if _name.endswith(_OF_ANY_DTYPE) else _fp32
    kernel(_name, "meta", label="shape only", accepts=_accepts)(_results_only(_op.reference))


@torch.no_grad()
def peak(run: Callable[[], object], known: Iterable[Tensor]) -> int:
    """The most bytes that `run` on the meta device holds at one time, beside the tensors `known`."""
    live = Live(known)
    with _NoScores(), live:
        result = run()
    del result
    return live.most
