"""`Node`: a place in the radix tree. Its edge holds the attention rows of its own tokens, copied; where a state was
kept, a `Point` holds the leaves of fixed size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from fluvial.engine.cache.budget import Item
from fluvial.engine.cache.chain import Run, Symbol
from fluvial.models.rounded import Rounded

if TYPE_CHECKING:
    from fluvial.engine.cache.tree import Tree

T = TypeVar("T", Tensor, Rounded, Tensor | Rounded)
NODE, SYMBOL = 1024, 36  # bytes of a node's own bookkeeping and of a token in its label, about

Rows = dict[str, tuple[Tensor, Tensor]]  # leaf -> k, v [1, H, tokens, D]


@dataclass(frozen=True)
class Point:
    """What a state holds besides rows, and the logits [vocab] for the next token."""

    leaves: dict[str, Tensor | Rounded]
    logits: Tensor

    @property
    def nbytes(self) -> int:
        return self.logits.nbytes + sum(leaf.nbytes for leaf in self.leaves.values())


class Node(Item):
    """The place behind `label`; `end` and `shift` are the state's position and rotary shift there. `cuts`: all memory
    is rows, and their beginning is a state too."""

    __slots__ = ("children", "cuts", "end", "label", "parent", "point", "rows", "shift", "tree")

    def __init__(self, tree: Tree, parent: Node | None, run: Run, rows: Rows, cuts: bool) -> None:
        super().__init__()
        self.tree, self.parent, self.label, self.end, self.shift = tree, parent, run.symbols, run.end, run.shift
        self.children: dict[Symbol, Node] = {}
        self.rows, self.cuts = rows, cuts
        self.point: Point | None = None
        self.count()

    @property
    def start(self) -> int:
        return 0 if self.parent is None else self.parent.end

    @property
    def evictable(self) -> bool:
        return self.point is not None or not self.children

    def count(self) -> None:
        """Brings `nbytes` and `work` up to date: the tokens to be read again without it."""
        rows = sum(k.nbytes + v.nbytes for k, v in self.rows.values())
        self.nbytes = NODE + SYMBOL * len(self.label) + rows + (self.point.nbytes if self.point else 0)
        before = self.parent
        while not self.cuts and before is not None and before.point is None:
            before = before.parent
        self.work = self.end - (0 if before is None else before.end)

    def evict(self) -> None:
        self.tree.evict(self)


Place = tuple[Node, int]  # a node, and how many symbols of its label are behind


def position_of(node: Node, at: int) -> int:
    """Tokens behind the first `at` symbols of a node's label."""
    return node.end if at == len(node.label) else node.start + at


def runs_between(start: Place, place: Place) -> tuple[Run, ...]:
    """What stands between two places."""
    (node, at), made = place, list[Run]()
    while True:
        begin = start[1] if node is start[0] else 0
        if at > begin:
            made.append(Run(node.label[begin:at], position_of(node, at), node.shift))
        parent = node.parent
        if node is start[0] or parent is None:
            return tuple(made[::-1])
        node, at = parent, len(parent.label)


def along(place: Place, symbols: tuple[Symbol, ...]) -> tuple[Place, int]:
    """As far along the symbols as the tree goes, and how many they were."""
    (node, at), done = place, 0
    while done < len(symbols):
        if at == len(node.label):
            if (child := node.children.get(symbols[done])) is None:
                break
            node, at = child, 0
        label, rest = node.label[at:], symbols[done : done + len(node.label) - at]
        same = len(rest) if label[: len(rest)] == rest else next(i for i, s in enumerate(rest) if s != label[i])
        at, done = at + same, done + same
        if at < len(node.label):
            break
    return (node, at), done


def own(leaf: T) -> T:
    """A tensor, or a rounded leaf, alone in its memory."""
    if isinstance(leaf, Rounded):
        return replace(leaf, parts={name: own(part) for name, part in leaf.parts.items()})
    alone = leaf.is_contiguous() and leaf.untyped_storage().nbytes() == leaf.nbytes
    return leaf.detach() if alone else leaf.detach().clone(memory_format=torch.contiguous_format)
