"""`Module`: an nn.Module that tells when what it holds may have been exchanged.

What is prepared once for many forwards (models/replay.py) asks `changes()` instead of looking at every tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Self, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)
_changes = 0


def changes() -> int:
    """A number that grows whenever a `Module` is made, moved, hooked or given another part."""
    return _changes


def _changed() -> None:
    global _changes
    _changes += 1


class Module(nn.Module):
    """As torch's. Assigning to `tensor.data` by hand goes unseen."""

    def __setattr__(self, name: str, value: Any) -> None:
        _changed()
        super().__setattr__(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:  # .to() and the like exchange the data in its tensors
        _changed()
        return super()._apply(fn, recurse)

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        _changed()
        return super().register_forward_hook(*args, **kwargs)

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        _changed()
        return super().register_forward_pre_hook(*args, **kwargs)


def initial(reset: Callable[[M], None]) -> Callable[[M], None]:
    """For a method that gives a module's parameters their values before training. On the meta device, where a model is
    built to be loaded, there are none to give, and torch's arithmetic there would import its compiler: 75 MB."""

    @wraps(reset)
    def run(self: M) -> None:
        if not any(parameter.is_meta for parameter in self.parameters()):
            with torch.no_grad():
                reset(self)

    return run
