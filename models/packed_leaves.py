"""`PackedLeaves`: a state's leaves in one piece of memory, made into tensors only when somebody asks.

A native step writes a whole new state beside the old one. When the old one is dropped its memory goes to the next step,
so two pieces take turns; a state that is still held, or whose tensors were given out, keeps its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fluvial.models.tape import Tape
from fluvial.models.tapes import Tapes

ALIGNED = 64  # bytes


@dataclass(frozen=True)
class Layout:
    """Names in their order; shape and dtype of those that are tensors, the others are tapes."""

    names: tuple[str, ...]
    tensors: tuple[tuple[str, torch.Size, torch.dtype], ...]
    offsets: tuple[int, ...] = field(init=False)
    nbytes: int = field(init=False)
    spare: list[Tensor] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        offsets, end = [], 0
        for _, shape, dtype in self.tensors:
            offsets.append(end)
            end += -(-shape.numel() * dtype.itemsize // ALIGNED) * ALIGNED
        object.__setattr__(self, "offsets", tuple(offsets))
        object.__setattr__(self, "nbytes", end)

    def memory(self) -> Tensor:
        """Room for one state, uint8 [nbytes]."""
        try:
            return self.spare.pop()
        except IndexError:
            return torch.empty(self.nbytes, dtype=torch.uint8)


class PackedLeaves(Mapping[str, Tensor | Tape]):
    """The leaves of a `Layout` in `memory`, and its tapes."""

    __slots__ = ("_made", "layout", "memory", "tapes")

    def __init__(self, layout: Layout, memory: Tensor, tapes: Tapes) -> None:
        self.layout, self.memory, self.tapes = layout, memory, tapes
        self._made: dict[str, Tensor | Tape] | None = None

    def _all(self) -> dict[str, Tensor | Tape]:
        if self._made is None:
            found = dict[str, Tensor | Tape]()
            for (name, shape, dtype), at in zip(self.layout.tensors, self.layout.offsets, strict=True):
                found[name] = self.memory[at : at + shape.numel() * dtype.itemsize].view(dtype).view(shape)
            tapes = iter(self.tapes.all())
            self._made = {name: found[name] if name in found else next(tapes) for name in self.layout.names}
        return self._made

    def __getitem__(self, name: str) -> Tensor | Tape:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.names)

    def __len__(self) -> int:
        return len(self.layout.names)

    def __copy__(self) -> PackedLeaves:
        return self  # nobody writes into it

    def __del__(self) -> None:
        if self._made is None and not self.layout.spare:
            self.layout.spare.append(self.memory)
