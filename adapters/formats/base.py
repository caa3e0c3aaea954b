"""What a storage format is. `unpack` alone makes it run on every chip; overriding `matmul` makes it fast."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.formats.product import product

Parts = dict[str, Tensor]
_formats: dict[str, Format] = {}


class Format(ABC):
    """Stores a matrix [out, in] as named tensors ("parts") and multiplies by it."""

    name: str
    trainable = False

    @abstractmethod
    def pack(self, matrix: Tensor) -> Parts:
        """Matrix [out, in] -> parts."""

    @abstractmethod
    def unpack(self, parts: Parts) -> Tensor:
        """Parts -> matrix [out, in]."""

    def empty(self, d_out: int, d_in: int, dtype: torch.dtype | None, device: torch.device | str | None) -> Parts:
        """Parts of the right shapes, to be filled by a loader."""
        return self.pack(torch.empty(d_out, d_in, dtype=dtype, device=device))

    def matmul(self, x: Tensor, parts: Parts) -> Tensor:
        """x [..., in] -> x W^T [..., out], in x's dtype."""
        return product(x, self.unpack(parts))

    def matmul_rows(self, x: Tensor, parts: Parts, rows: slice | Tensor) -> Tensor:
        """`matmul` by some rows of the matrix only, a slice or int64 [n]: x [..., in] -> [..., n]."""
        return product(x, self.unpack(parts)[rows])

    def rows(self, parts: Parts, ids: Tensor) -> Tensor:
        """ids int64 [...] -> rows of the matrix [..., in] (an embedding look-up)."""
        return self.unpack(parts)[ids]


def register(format: Format) -> Format:
    """Makes a format known by its name."""
    _formats[format.name] = format
    return format


def by_name(name: str) -> Format:
    """The format of that name, or an `UnsupportedError` that lists what there is."""
    if name not in _formats:
        raise UnsupportedError(f"Unknown weight format '{name}'.", hint=f"Available: {', '.join(sorted(_formats))}.")
    return _formats[name]
