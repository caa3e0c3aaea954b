"""Ops: a plain-torch reference under a name, and faster kernels registered beside it.

`@op` turns a reference function into an `Op`. `@kernel("name", "cpu", accepts=...)` offers a faster
implementation for a device; the op calls the newest kernel whose `accepts(*args)` is true and else the reference.
A kernel must equal its reference on every input it accepts (one parametrised test holds them all). Ops run at the
dtype of their arguments, also under autocast, because recurrences lose accuracy in half precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

_reference_only: ContextVar[bool] = ContextVar("reference_only", default=False)
_ops: dict[str, Op] = {}
_kernels: dict[str, list[Kernel]] = {}


@dataclass(frozen=True)
class Kernel:
    """A faster implementation of one op on one device type. `accepts` must be cheap: it runs on every call."""

    op: str
    device: str
    label: str
    run: Callable[..., Any]
    accepts: Callable[..., bool]


class Op:
    """A named operation: calling it runs the best accepted kernel, or the reference. Options by keyword (a `tree`) are
    the reference's: no kernel takes them."""

    def __init__(self, name: str, reference: Callable[..., Any]) -> None:
        self.name, self.reference = name, reference
        self.__doc__ = reference.__doc__
        self.kernels = _kernels.setdefault(name, [])

    def __call__(self, first: torch.Tensor, *args: Any, **options: Any) -> Any:
        device = first.device.type
        if device != "meta" and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self._dispatch(device, first, *args, **options)
        return self._dispatch(device, first, *args, **options)

    def _dispatch(self, device: str, *args: Any, **options: Any) -> Any:
        if any(option is not None for option in options.values()):
            return self.reference(*args, **options)
        if not _reference_only.get():
            for candidate in reversed(self.kernels):
                if candidate.device == device and candidate.accepts(*args):
                    return candidate.run(*args)
        return self.reference(*args)


def op(reference: Callable[..., Any]) -> Op:
    """Registers a reference under its function name."""
    created = Op(reference.__name__, reference)
    _ops[created.name] = created
    return created


def kernel(name: str, device: str, *, label: str, accepts: Callable[..., bool]) -> Callable[..., Any]:
    """Registers a kernel for op `name` on `device`; the op may be defined before or after."""

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        _kernels.setdefault(name, []).append(Kernel(name, device, label, run, accepts))
        return run

    return register


@contextmanager
def reference_only() -> Iterator[None]:
    """Inside, every op runs its plain-torch reference (for tests and for comparing numbers)."""
    token = _reference_only.set(True)
    try:
        yield
    finally:
        _reference_only.reset(token)


def only_references() -> bool:
    """Whether this is inside `reference_only()`."""
    return _reference_only.get()


def explain(device: str = "cpu") -> dict[str, str]:
    """Which implementation each op prefers on `device`."""
    return {
        name: next((k.label for k in reversed(o.kernels) if k.device == device), "torch reference")
        for name, o in sorted(_ops.items())
    }


def registered() -> dict[str, Op]:
    """Every op by name."""
    return dict(_ops)
