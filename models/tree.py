"""`Tree`: several continuations at once. A provisional forward over the tokens of a tree gives each node what the plain
forward along its root path gives, and any root path can be committed.

Causal order is replaced by ancestry (Miao et al. 2023; in linear recurrences the same mask on decayed products): a node
sees itself and its ancestors, sums of log decay run along the root path, convolutions read a node's own ancestors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fluvial.adapters.errors import UsageError

MOST = 64  # nodes: one chunk of every recurrence, whose exponents stay in the range of fp32


class Tree:
    """T nodes, `parents[t]` < t; -1 is the last token of the state. Errors: UsageError for anything else."""

    def __init__(self, parents: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.parents = tuple(parents)
        if not 1 <= len(self.parents) <= MOST:
            raise UsageError(f"A tree of {len(self.parents)} nodes.", f"It has 1 to {MOST}.")
        if any(not -1 <= parent < t for t, parent in enumerate(self.parents)):
            raise UsageError(f"Parents {self.parents} are no tree.", "A parent stands before its children; -1: none.")
        seen = torch.eye(len(self.parents), dtype=torch.bool)
        for t, parent in enumerate(self.parents):
            if parent >= 0:
                seen[t] |= seen[parent]
        self.ancestors = seen.to(device)  # bool [T, T]: row t marks t and its ancestors
        self.depth = self.ancestors.sum(1) - 1  # int64 [T]

    def __len__(self) -> int:
        return len(self.parents)

    def sums(self, rows: Tensor) -> Tensor:
        """rows [..., T] -> their sums along each node's root path, itself included, in fp64."""
        return rows.double() @ self.ancestors.mT.double()

    def windows(self, size: int) -> Tensor:
        """Where each node's `size` newest rows stand, oldest first, in `size` - 1 rows of the past followed by the
        nodes': int64 [T, size]."""
        past = list(range(size - 1))
        found: list[list[int]] = []
        for t, parent in enumerate(self.parents):
            found.append([*(past if parent < 0 else found[parent][1:]), size - 1 + t])
        return torch.tensor(found, device=self.ancestors.device)

    def checked(self, path: Sequence[int]) -> tuple[int, ...]:
        """A root path, each node the parent of the next (or nothing at all). Errors: UsageError."""
        before = -1
        for node in path:
            if not 0 <= node < len(self) or self.parents[node] != before:
                raise UsageError(f"{list(path)} is no path from the root of the tree {list(self.parents)}.")
            before = node
        return tuple(path)
