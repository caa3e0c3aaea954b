"""`StateCache`: states, rows and encoder outputs that sessions share, behind one lock and one budget."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluvial.adapters.recipes import count
from fluvial.encoders.frame import Frame
from fluvial.engine.cache.budget import Budget
from fluvial.engine.cache.chain import Chain, Symbol
from fluvial.engine.cache.config import Cache, size_of
from fluvial.engine.cache.disk import Disk
from fluvial.engine.cache.key import Key, key_of, plugins_key
from fluvial.engine.cache.media import Look, Media, Record, bytes_of
from fluvial.engine.cache.tree import Tree
from fluvial.engine.draft import Seen
from fluvial.engine.media import Facts, Medium, Step
from fluvial.engine.model import Model
from fluvial.models.tape import Tape

if TYPE_CHECKING:
    from fluvial.engine.feed import Feed


@dataclass(frozen=True)
class Hit:
    """`feed` stands `count` symbols on; `shared` are known to the tree. `why` the rest has to be read."""

    feed: Feed
    count: int
    shared: int
    why: str


class StateCache:
    """Switched on for a model by `fluvial.load(cache=...)`; sessions use it by themselves, from any thread."""

    def __init__(self, config: Cache, model: Model) -> None:
        self.config = config
        self._lock = threading.RLock()
        self._budget = Budget(size_of(config.ram))
        self._tree = Tree(self._budget)
        self._media = Media(
            self._budget, count({"tower": model.tower}) / count({"": model.decoder}) if model.tower else 1
        )
        self._disk: Disk | None = None
        if config.disk is not None:
            self._disk = Disk(Path(config.disk).expanduser(), size_of(config.disk_size), model.decoder.device)
        self._hits, self._tokens, self._misses, self._media_known = 0, 0, Counter[str](), Counter[str]()

    # --- what sessions ask --------------------------------------------------------------------------------------

    def start(self, feed: Feed) -> Feed:
        """A feed with account of what it reads, which is nothing so far."""
        return replace(feed, chain=Chain(self._key(feed), plugins_key(feed.route)))

    def _key(self, feed: Feed) -> Key:
        return key_of(feed.model, feed.route, feed.tenant, self.config.salt)

    def find(self, feed: Feed, symbols: Sequence[Symbol]) -> Hit:
        """The furthest state on the way from `feed` along `symbols`."""
        chain, plugins = feed.chain, plugins_key(feed.route)
        assert chain is not None
        switch = () if plugins == chain.plugins else (f"plugins {plugins}",)
        with self._lock:
            found = self._tree.find(chain, (*switch, *symbols), feed.state)
            if found.count < len(switch) + len(symbols) and self._fetched(feed, (*switch, *symbols), found.count):
                found = self._tree.find(chain, (*switch, *symbols), feed.state)
            on, known = found.count - len(switch), max(0, found.shared - len(switch))
            if found.why:
                self._misses[found.why] += 1
            if on <= 0 or found.state is None:
                return Hit(feed, 0, known, found.why)
            self._hits += 1
            self._tokens += found.state.position[0] - feed.position
        draft = feed.draft
        for run in found.runs:
            chain = Chain(chain.key, plugins, chain, run.symbols, run.end, run.shift)
            ids = [symbol for symbol in run.symbols if isinstance(symbol, int)]
            if draft is not None and run.symbols != switch:
                draft = draft.observe(Seen(ids or None, route=feed.route))
        chain.node = found.node
        there = replace(feed, state=found.state, logits=found.logits, draft=draft, chain=chain)
        return Hit(there, on, known, found.why)

    def restored(self, feed: Feed, past: Sequence[Symbol], checksum: str) -> Feed:
        """A feed that comes from a file, with account of what it has read: `past`, where this very state is held behind
        it; else the file alone, so that what a file says of itself is never shared with those who read it."""
        feed = self.start(feed)
        chain = feed.chain
        assert chain is not None
        with self._lock:
            found = self._tree.find(chain, past, feed.state)
            if found.count < len(past) and self._fetched(feed, tuple(past), found.count):
                found = self._tree.find(chain, past, feed.state)
        if past and found.count == len(past) and found.state is not None and found.state.equals(feed.state):
            for run in found.runs:
                chain = Chain(chain.key, chain.plugins, chain, run.symbols, run.end, run.shift)
            chain.node = found.node
        else:
            chain = chain.read((f"file {checksum}",), chain.plugins, feed.position, feed.state.shift)
        return replace(feed, chain=chain)

    def _fetched(self, feed: Feed, symbols: tuple[Symbol, ...], count: int) -> bool:
        """Brings a state further on than `count` symbols from disk into memory."""
        if self._disk is None or feed.chain is None:
            return False
        past = tuple(symbol for run in feed.chain.whole() for symbol in run.symbols)
        stored = self._disk.find(feed.chain.key, past + symbols, len(past) + count, str(feed.state.model))
        self._noted()
        if stored is None:
            return False
        chain = Chain(feed.chain.key, feed.chain.plugins)
        for run in stored.runs:
            chain = Chain(chain.key, chain.plugins, chain, run.symbols, run.end, run.shift)
        feed.chain.lost = False
        return self._tree.keep(chain, stored.state, stored.logits)

    def _noted(self) -> None:
        if self._disk is not None:
            self._misses.update(self._disk.problems)
            self._disk.problems.clear()

    def keep(self, feed: Feed, *, lasting: bool = True) -> None:
        """Keeps a session's state, if there is room for it; what is `lasting` goes to disk too."""
        chain, state = feed.chain, feed.state
        if chain is None or feed.logits is None or (chain.position,) != state.position or chain.shift != state.shift:
            return
        if any(isinstance(leaf, Tape) and leaf.lengths != state.position for leaf in state.leaves.values()):
            return
        with self._lock:
            if not self._tree.keep(chain, state, feed.logits):
                self._misses["there was no room to keep it"] += 1
            if self._disk is not None and lasting:
                self._disk.put(chain.key, chain.whole(), state, feed.logits)
                self._noted()

    # --- media --------------------------------------------------------------------------------------------------

    def seen(self, feed: Feed, medium: Medium | list[Frame]) -> Look:
        """What is known of a medium, by its bytes. Errors: MediaError for what cannot be read."""
        return Look(self, self._key(feed), medium)

    def record(self, key: str) -> Record | None:
        """The record of a medium."""
        with self._lock:
            if (record := self._media.records.get(key)) is not None:
                self._budget.touch(record)
            if (record is None or record.steps is None) and self._disk is not None:
                if (stored := self._disk.find_medium(key)) is not None:
                    facts, steps = stored
                    nbytes = sum(bytes_of(step) for step in steps)
                    fits = 2 * nbytes <= self._budget.limit and self._budget.reserve(nbytes)
                    self._media.put(key, facts, steps if fits else None, nbytes if fits else 0)
                    record = self._media.records.get(key)
                self._noted()
            self._media_known["seen" if record is not None else "new"] += 1
            return record

    def reserve(self, nbytes: int, *, of: int) -> bool:
        """Room for more of a medium that has taken `of` bytes; it gets half of all at most."""
        with self._lock:
            return 2 * (of + nbytes) <= self._budget.limit and self._budget.reserve(nbytes)

    def release(self, nbytes: int) -> None:
        with self._lock:
            self._budget.release(nbytes)

    def keep_medium(self, key: str, facts: Facts, steps: tuple[Step, ...] | None, nbytes: int) -> None:
        with self._lock:
            self._media.put(key, facts, steps, nbytes)
            if self._disk is not None and steps is not None:
                self._disk.put_medium(key, facts, steps)
                self._noted()

    # --- what people ask ----------------------------------------------------------------------------------------

    def explain(self) -> dict[str, Any]:
        """Its limits."""
        disk = {} if self._disk is None else {"disk": str(self._disk.folder), "disk_size": self._disk.size}
        return {"ram": self._budget.limit} | disk

    def inspect(self) -> dict[str, Any]:
        """What it holds and how it did: entries, bytes, look-ups that helped, and why others (or a rest) did not."""
        with self._lock:
            nodes = list(self._tree.nodes())
            return {
                "bytes": self._budget.used,
                "limit": self._budget.limit,
                "peak": self._budget.peak,
                "prefixes": len(self._tree.roots),
                "states": sum(node.point is not None for node in nodes),
                "tokens": sum(node.end - node.start for node in nodes),
                "media": len(self._media.records),
                "media_encoded": sum(record.steps is not None for record in self._media.records.values()),
                "evicted": self._budget.evicted,
                "disk_bytes": self._disk.used() if self._disk is not None else 0,
                "hits": self._hits,
                "hit_tokens": self._tokens,
                "misses": dict(self._misses),
                "media_seen": self._media_known["seen"],
                "media_new": self._media_known["new"],
            }

    def clear(self) -> None:
        """Forgets all that is in memory."""
        with self._lock:
            self._budget.reserve(self._budget.limit)
            self._budget.release(self._budget.limit)
