"""Cells of the matrix of sessions: one value for each axis of `engine/matrix.py`, and the conversation that each must
hold as the plain run of the same weights and plugin does."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fluvial.engine.cache.cache import StateCache
from fluvial.engine.cache.config import Cache
from fluvial.engine.draft import Context, Draft, Packed, Proposal, Seen
from fluvial.engine.drafts import _model, drafting
from fluvial.engine.events import Done
from fluvial.engine.matrix import ARCHITECTURES, FEATURES, refusal
from fluvial.engine.media import Image, Video
from fluvial.engine.model import Model
from fluvial.engine.session import Session
from fluvial.models.state import State
from tests.composition import checkpoints
from tests.engine.scripted import FixedDepths
from tests.engine.tiny import picture
from tests.media.media_files import animation

DEPTH, ANSWER, CUT = 4, 8, 5  # guesses at once; tokens of an answer, and of one that is interrupted
PUSHED = {
    "text": "The red circle is near gate 3. The red circle is near gate 4.",
    "image": Image(picture(7, 64, 64)),
    "video": Video(animation("webp", [picture(seed, 64, 64) for seed in range(4)], [500] * 4)),
}


class Cell(NamedTuple):
    model: str
    format: str
    plugin: str
    cache: str
    draft: str
    input: str
    way: str
    kv: str


AXES = {"model": tuple(ARCHITECTURES)} | {
    axis: tuple(f.value for f in FEATURES if f.axis == axis) for axis in Cell._fields if axis != "model"
}


def refused(cell: Cell) -> str:
    """Why there is no such session; empty where there is."""
    return refusal(cell.model, cell._asdict())


def pairwise() -> list[Cell]:
    """Cells that work, so that every two values that can meet do: each new cell is the one of many drawn that shows the
    most pairs not yet seen, begun from one of those."""
    draw, cells = random.Random(0), list[Cell]()
    names = list(AXES)
    pairs = {
        frozenset({(a, x), (b, y)}): None
        for a, b in itertools.combinations(names, 2)
        for x, y in itertools.product(AXES[a], AXES[b])
        if any(not refusal(m, {a: x, b: y}) for m in AXES["model"] if dict([(a, x), (b, y)]).get("model", m) == m)
    }
    while pairs:
        wanted = dict(next(iter(pairs)))
        drawn = (Cell(*(wanted.get(n) or draw.choice(AXES[n]) for n in names)) for _ in range(400))
        cell = max((c for c in drawn if not refused(c)), key=lambda c: sum(p in pairs for p in met(c)))
        cells.append(cell)
        for pair in met(cell):
            pairs.pop(pair, None)
    return cells


def met(cell: Cell) -> Iterator[frozenset[tuple[str, str]]]:
    """The pairs of values that the cell shows."""
    return map(frozenset, itertools.combinations(cell._asdict().items(), 2))


def drawn(count: int, seed: int = 2026) -> list[Cell]:
    """Random cells, refused ones among them."""
    draw = random.Random(seed)
    return [Cell(*(draw.choice(values) for values in AXES.values())) for _ in range(count)]


class Talk(NamedTuple):
    """What was said, and what is remembered after it."""

    answers: list[tuple[str, list[int]]]
    position: int
    logits: Tensor
    state: State
    cached: int
    accepted: int
    drafted: int


@dataclass(frozen=True)
class Told:
    """A draft whose guesses are put right by what will be said, as far as every third one, so that random weights see
    long commits, short ones and branches too."""

    inner: Draft
    answers: Sequence[Sequence[int]]

    @property
    def name(self) -> str:
        return self.inner.name

    def observe(self, seen: Seen) -> Told:
        return replace(self, inner=self.inner.observe(seen))

    def pack(self) -> Packed:
        return self.inner.pack()

    def unpack(self, packed: Packed) -> Told:
        return replace(self, inner=self.inner.unpack(packed))

    def propose(self, context: Context, k: int) -> Proposal:
        found, past = self.inner.propose(context, k), list(context.history)
        ends = [(i, said[i:]) for said in self.answers for i in range(1, len(said)) if past[-i:] == list(said[:i])]
        truth = list(max(ends)[1])[: len(past) % 3 + 1] if ends else []
        if not found.tokens:
            return Proposal(truth[:k])
        tokens, at = list(found.tokens), -1
        parents = range(-1, len(tokens) - 1) if found.parents is None else found.parents
        for id in truth:  # down the last branches; guesses behind the same one differ
            branches = [i for i, parent in enumerate(parents) if parent == at]
            if not branches:
                break
            at = next((i for i in branches if tokens[i] == id), branches[-1])
            tokens[at] = id
        return replace(found, tokens=tokens)


def draft_of(model: Model, cell: Cell) -> Draft | None:
    if cell.draft == "model":  # the same weights before they were packed and without plugins: right now and then
        return _model.between(model, checkpoints.model_of(cell.model, "fp32", "exact"))
    return None if cell.draft == "none" else drafting(cell.draft, model)


def told(draft: Draft | None, cell: Cell) -> Draft | None:
    return None if draft is None else Told(draft, [ids for _, ids in plain(cell).answers])


def talk(model: Model, cell: Cell, draft: Draft | None = None, folder: Path | None = None) -> Talk:
    """Two questions about what was pushed. The plain run has no `draft` and no `folder` to be saved in, nor forks."""
    session = Session(
        model, system="Be brief. Be brief.", plugin=None if cell.plugin == "none" else cell.plugin, draft=draft
    )
    usages, answers = list[Done](), list[tuple[str, list[int]]]()

    def ask(session: Session, question: str, *, cut: bool = False) -> tuple[str, list[int]]:
        stream, text, ids = session.ask(question, max_tokens=ANSWER), "", list[int]()
        for event in stream:
            if isinstance(event, Done):
                usages.append(event)
                break
            text, ids = text + event.text, [*ids, event.id]
            if cut and len(ids) == CUT:
                break
        stream.close()
        return text, ids

    session.push(PUSHED[cell.input])
    if cell.way == "forked" and folder is not None:
        ask(session.fork(), "Something else?")
    answers.append(ask(session, "What is there?", cut=cell.way == "interrupted"))
    if cell.way == "saved" and folder is not None:
        session.save(folder / "talk.session")
        session = Session.load(model, folder / "talk.session", draft)
    twin = session.fork() if cell.way == "forked" and folder is not None else None
    answers.append(ask(session, "And near gate 3?"))
    if twin is not None:
        assert ask(twin, "And near gate 3?") == answers[-1]
    feed, usage = session._now.feed, [done.usage for done in usages]
    accepted, guessed = sum(u.accepted_tokens for u in usage), sum(u.drafted_tokens for u in usage)
    cached = sum(u.cached_tokens for u in usage)
    assert feed.logits is not None
    return Talk(answers, session.position, feed.logits, feed.state, cached, accepted, guessed)


@cache
def plain(cell: Cell) -> Talk:
    """Of the same weights, plugin and way to keep rows."""
    return talk(checkpoints.model_of(cell.model, cell.format, cell.kv), cell)


def composed(cell: Cell, folder: Path) -> Talk:
    """The cell as it is meant to be used. Errors: UnsupportedError where it is refused."""
    model = copy.copy(checkpoints.model_of(cell.model, cell.format, cell.kv))
    model.depths = FixedDepths(DEPTH)
    if cell.plugin == "state" and "state" not in model.plugins:
        model.plugins.load(checkpoints.start(model, cell.model), "state")
    draft = told(draft_of(model, cell), cell)
    model.cache = StateCache(Cache("32MB", folder / "cache" if cell.cache == "disk" else None), model)
    if cell.cache == "cold":
        return talk(model, cell, draft, folder)
    talk(model, cell, draft, folder)
    if cell.cache == "disk":
        model.cache = StateCache(model.cache.config, model)  # as another process would
    return talk(model, cell, draft, folder)
