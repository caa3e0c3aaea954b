"""Fingerprints: what a model is, told by a hash of its content. Hashing reads every weight, seconds for billions of
them, so it waits until somebody asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


class Fingerprint:
    """A name that is computed when it is first needed, at most once; until then it holds on to what it is computed
    from. Equal to itself at no cost, to another one or to a string if the texts are."""

    def __init__(self, compute: Callable[[], str]) -> None:
        self._compute: Callable[[], str] | None = compute
        self._text = ""

    def __str__(self) -> str:
        if (compute := self._compute) is not None:
            self._text, self._compute = compute(), None
        return self._text

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Fingerprint | str):
            return self is other or str(self) == str(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))


def add_tensors(to: Hash, module: nn.Module) -> None:
    """Adds the names and bytes of all tensors of a module."""
    for name, tensor in sorted(module.state_dict().items()):
        to.update(name.encode())
        to.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
