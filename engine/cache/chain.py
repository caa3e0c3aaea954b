"""`Chain`: what a memory has read, as the symbols on the way to it in the radix tree.

A symbol is a token's id, a medium ("medium HASH", all of its steps), or a change of plugins. Links are shared by forks;
a session adds to the end and never changes what it stands on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, groupby
from typing import TYPE_CHECKING

from fluvial.engine.cache.key import Key

if TYPE_CHECKING:
    from fluvial.engine.cache.tree import Node

Symbol = int | str
LINK = 64  # tokens that come one by one are gathered in links of about so many
MOST_LINKS = 4096


@dataclass(frozen=True)
class Run:
    """Tokens in a row, or one other symbol; `end` and `shift` are the state's position and rotary shift behind it."""

    symbols: tuple[Symbol, ...]
    end: int
    shift: tuple[int, ...]

    def cut(self, most: int) -> list[Run]:
        """The same in pieces of at most so many symbols."""
        count, made = len(self.symbols), list[Run]()
        for at in range(0, count, most):
            part = self.symbols[at : at + most]
            made.append(Run(part, self.end - (count - at - len(part)), self.shift))
        return made


class Chain:
    """One link: `symbols` (tokens, or one other symbol) behind `parent`; `position` and `shift` are the state's there.

    `node`: where the tree holds this very place, if it was seen there; it may have gone since. `lost`: the tree did not
    hold it, or what it stands on, when it was last asked."""

    __slots__ = ("key", "links", "lost", "node", "parent", "plugins", "position", "shift", "symbols")

    def __init__(
        self,
        key: Key,
        plugins: str,
        parent: Chain | None = None,
        symbols: tuple[Symbol, ...] = (),
        position: int = 0,
        shift: tuple[int, ...] = (),
    ) -> None:
        self.key, self.plugins, self.parent, self.symbols = key, plugins, parent, symbols
        self.position, self.shift = position, shift
        self.node: Node | None = None
        self.lost: bool = parent is not None and parent.lost
        self.links: int = 0 if parent is None or parent.node is not None else parent.links + 1

    @property
    def given_up(self) -> bool:
        """It went on for so long without being kept (live frames for hours) that its account is not worth keeping."""
        return self.lost and self.links > MOST_LINKS

    def read(self, symbols: Iterable[Symbol], plugins: str, position: int, shift: tuple[int, ...]) -> Chain:
        """After more symbols, all tokens or one other, read with `plugins`."""
        added, place = tuple(symbols), self
        if plugins != self.plugins:
            place = Chain(self.key, plugins, self, (f"plugins {plugins}",), self.position, self.shift)
        text = bool(place.symbols) and isinstance(place.symbols[0], int) and isinstance(added[0], int)
        if text and place.node is None and len(place.symbols) < LINK:
            return Chain(self.key, plugins, place.parent, place.symbols + added, position, shift)
        return Chain(self.key, plugins, place, added, position, shift)

    def whole(self) -> list[Run]:
        """All that was read."""
        link, links = self, list[Chain]()
        while link.parent is not None:
            links.append(link)
            link = link.parent
        return runs_of(links[::-1])

    def known(self) -> tuple[Node | None, list[Chain]]:
        """The nearest place on the way that the tree still holds, and the links behind it in order."""
        link, behind = self, list[Chain]()
        while link.parent is not None and not (link.node is not None and link.node.alive):
            behind.append(link)
            link = link.parent
        return (link.node if link.node is not None and link.node.alive else None), behind[::-1]


def runs_of(links: Iterable[Chain]) -> list[Run]:
    """Links as runs: neighbouring tokens together, other symbols alone."""
    made: list[Run] = []
    for text, group in groupby(links, lambda link: isinstance(link.symbols[0], int)):
        parts = list(group)
        joined = [(tuple(chain.from_iterable(part.symbols for part in parts)), parts[-1])] if text else []
        for symbols, last in joined or [(part.symbols, part) for part in parts]:
            made.append(Run(symbols, last.position, last.shift))
    return made
