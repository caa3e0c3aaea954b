"""`Tree`: the radix tree over chains of tokens and media, with the states that were kept on the way.

A prefix's rows are held once however many chains go on from it, nothing here pins a session's memory, and the bytes are
exactly those of the tensors. Where all memory is rows (a Transformer), a state can be had after any token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fluvial.engine.cache.budget import Budget
from fluvial.engine.cache.chain import Chain, Run, Symbol, runs_of
from fluvial.engine.cache.key import Key, differing
from fluvial.engine.cache.node import NODE, SYMBOL, Node, Place, Point, along, own, position_of, runs_between
from fluvial.models.state import Leaf, State
from fluvial.models.tape import GROWTH, Tape

EDGE = 1024  # tokens on an edge at most, so that a long one goes piece by piece


@dataclass(frozen=True)
class Found:
    """The tree knows `shared` of the symbols that come next, and has the state behind `count` of them (None for 0).
    `why` it is not all of them; "" where it is. `runs` are the symbols to that state, `node` its node if it has one."""

    shared: int
    count: int
    why: str
    state: State | None = None
    logits: Tensor | None = None
    node: Node | None = None
    runs: Sequence[Run] = ()


class Tree:
    """All chains, by what must be equal for all of one (`Key`)."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.roots = budget, dict[Key, Node]()

    def nodes(self) -> Iterator[Node]:
        """Every node."""
        waiting = list(self.roots.values())
        while waiting:
            node = waiting.pop()
            waiting += node.children.values()
            yield node

    # --- looking ------------------------------------------------------------------------------------------------

    def find(self, chain: Chain, symbols: Sequence[Symbol], like: State) -> Found:
        """The furthest state on the way from `chain` along `symbols`; `like` is a state of the same model."""
        if chain.lost:
            return Found(0, 0, "its past is not cached")
        start, missing = self._known(chain)
        if start is None:
            others = list(self.roots)
            return Found(0, 0, f"another {differing(chain.key, others)}" if others else "nothing is cached")
        if missing:
            chain.lost = True
            return Found(0, 0, "its past is not cached")
        (node, at), done = along(start, tuple(symbols))
        why = ""
        if done < len(symbols):
            why = "it goes on differently" if at < len(node.label) or node.children else "it is new"
        best, count, skipped = self._nearest((node, at), done, done == len(symbols))
        if skipped:
            why = "; ".join(filter(None, ("its state was not kept", why)))
        if count <= 0:
            return Found(done, 0, why)
        node, at = best
        whole = at == len(node.label)
        self._used(node)
        logits = node.point.logits if whole and node.point is not None else None
        return Found(
            done, count, why, self._state(best, like), logits, node if whole else None, runs_between(start, best)
        )

    def _nearest(self, place: Place, done: int, complete: bool) -> tuple[Place, int, bool]:
        """The last place up to `place`, `done` symbols on, that gives a state; its symbols; whether more were known."""
        node, at = place
        if at == len(node.label) and node.point is not None:
            return place, done, False
        if node.cuts and not complete:
            return place, done, False
        if node.cuts and node.parent is not None:  # the last token is read again, for its logits
            back = (node, at - 1) if at > 1 else (node.parent, len(node.parent.label))
            return back, done - 1, not isinstance(node.label[at - 1], int)
        known, done = done, done - at
        above = node.parent
        while above is not None and above.point is None:
            done -= len(above.label)
            above = above.parent
        return ((above, len(above.label)), done, known > 0) if above else (place, 0, known > 0)

    def _known(self, chain: Chain) -> tuple[Place | None, list[Run]]:
        """The last place of a chain that the tree knows (None: not even its key), and what comes behind it."""
        node, links = chain.known()
        runs = runs_of(links)
        node = self.roots.get(chain.key) if node is None else node
        if node is None:
            return None, runs
        place = (node, len(node.label))
        while runs:
            place, done = along(place, runs[0].symbols)
            if done < len(runs[0].symbols):
                runs[0] = replace(runs[0], symbols=runs[0].symbols[done:])
                break
            del runs[0]
        return place, runs

    def _used(self, node: Node) -> None:
        node.count()
        self.budget.touch(node)
        above = node.parent if node.cuts else None
        while above is not None:
            self.budget.touch(above)
            above = above.parent

    def _state(self, place: Place, like: State) -> State:
        """The state at a place: rows copied together, the rest shared."""
        node, at = place
        length, path = position_of(node, at), [node]
        while path[-1].parent is not None:
            path.append(path[-1].parent)
        leaves: dict[str, Leaf] = {}
        for name, leaf in like.leaves.items():
            if isinstance(leaf, Tape):
                made = [t.new_zeros(*t.shape[:2], length + GROWTH, t.shape[3]) for t in leaf.between(0, 0)]
                for step in path:
                    end = min(step.end, length)
                    for new, rows in zip(made, step.rows.get(name, ()), strict=False):
                        new[:, :, step.start : end] = rows[:, :, : end - step.start]
                leaves[name] = Tape.of(made[0], made[1], (length,))
            else:
                assert node.point is not None
                leaves[name] = node.point.leaves[name]
        return replace(like, leaves=leaves, position=(length,), shift=node.shift)

    # --- keeping ------------------------------------------------------------------------------------------------

    def keep(self, chain: Chain, state: State, logits: Tensor) -> bool:
        """Keeps the state that a chain ends with; False where there is no room."""
        tapes = {name: leaf for name, leaf in state.leaves.items() if isinstance(leaf, Tape)}
        point = Point({n: own(leaf) for n, leaf in state.leaves.items() if not isinstance(leaf, Tape)}, own(logits))
        cuts = not point.leaves
        place, runs = self._known(chain)
        pieces = [piece for run in runs for piece in run.cut(EDGE)]
        if not pieces and place is not None and place[0].point is not None and place[1] == len(place[0].label):
            chain.node, chain.lost = place[0], False
            self.budget.touch(place[0])
            return True
        known = 0 if place is None else position_of(*place)
        a_row = sum(rows.nbytes for tape in tapes.values() for rows in tape.between(0, 1))
        symbols = sum(len(piece.symbols) for piece in pieces)
        split = place is not None and place[1] < len(place[0].label)
        nodes = len(pieces) + split + (place is None)
        need = point.nbytes + NODE * nodes + SYMBOL * symbols + a_row * (chain.position - known)
        if not self.budget.reserve(need, None if place is None else place[0]):
            return False
        if place is None:
            node = self.roots[chain.key] = Node(self, None, Run((), 0, ()), {}, cuts)
        else:
            node = self._split(*place) if split else place[0]
        for piece in pieces:
            rows = {name: tape.between(node.end, piece.end) for name, tape in tapes.items()}
            after = Node(self, node, piece, rows, cuts)
            node.children[piece.symbols[0]] = after
            node = after
        node.point = point
        self._used(node)
        chain.node, chain.lost = node, False
        return True

    def _split(self, node: Node, at: int) -> Node:
        """A node in the middle of an edge; `node` keeps its end."""
        parent, first = node.parent, at + node.start
        assert parent is not None
        head = Node(self, parent, Run(node.label[:at], first, node.shift), {}, node.cuts)
        for name, (k, v) in node.rows.items():
            head.rows[name] = own(k[:, :, :at]), own(v[:, :, :at])
            node.rows[name] = own(k[:, :, at:]), own(v[:, :, at:])
        parent.children[node.label[0]] = head
        node.parent, node.label = head, node.label[at:]
        head.children[node.label[0]] = node
        head.hits, head.priority = node.hits, node.priority
        head.count()
        node.count()
        return head

    def evict(self, node: Node) -> None:
        """Takes a point away; at the end of a chain also the rows that nothing else needs."""
        if node.children and node.point is not None:
            self.budget.release(node.point.nbytes)
            node.point = None
            node.count()
            return
        while (parent := self._removed(node)) is not None and not parent.children:
            if parent.cuts or parent.held or parent.point is not None:
                self.budget.queue(parent)
                return
            node = parent

    def _removed(self, node: Node) -> Node | None:
        """Takes a leaf away; its parent."""
        self.budget.release(node.nbytes)
        node.alive, node.rows, node.point = False, {}, None
        if node.parent is None:
            self.roots = {key: root for key, root in self.roots.items() if root is not node}
        else:
            del node.parent.children[node.label[0]]
        return node.parent
