"""`Engine`: a loaded model and the sessions on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fluvial.engine.cache.cache import StateCache
from fluvial.engine.cache.config import Cache
from fluvial.engine.draft import Draft
from fluvial.engine.drafts import drafting
from fluvial.engine.live import LiveSession
from fluvial.engine.live_async import AsyncSession
from fluvial.engine.model import Model, load_model
from fluvial.engine.plugins import Choice, Plugins
from fluvial.engine.session import Session
from fluvial.engine.template import Message


class Engine:
    """One model, any number of sessions; `draft` is what they draft with where they name nothing else."""

    def __init__(self, model: Model, draft: Draft | None = None) -> None:
        self.model, self.draft = model, draft

    @property
    def plugins(self) -> Plugins:
        """The plugins of the model: load, verify, unload, list."""
        return self.model.plugins

    @property
    def cache(self) -> StateCache | None:
        """What sessions share, if it is on: `inspect()` says what it holds and how it did."""
        return self.model.cache

    def session(
        self,
        *,
        system: str | None = None,
        plugin: Choice = None,
        draft: str | None = None,
        tenant: str = "",
        messages: Sequence[Message] = (),
    ) -> Session:
        """A new conversation; `system` is the system prompt. `plugin`: the name of a loaded one, or a blend of several
        with their weights, {"a": 0.7, "b": 0.3}. `draft`: another than the engine's, as `load` takes it; "none" is
        none. Sessions of different tenants share nothing in the cache.

        `messages`: what was said before, up to an answer, for callers that keep no session. Media stand in them as
        {"type": "image", "image": fluvial.Image(...)}."""
        asked = self._draft(draft)
        return Session(self.model, system=system, plugin=plugin, draft=asked, tenant=tenant, messages=messages)

    def live(self, *, system: str | None = None, plugin: Choice = None, **options: Any) -> LiveSession:
        """A session for live input, for hours: frames and texts from any thread, answers while they come in. `options`
        are those of `LiveSession`: queue, overflow, economy."""
        return LiveSession(self.session(system=system, plugin=plugin), **options)

    def asession(self, *, system: str | None = None, plugin: Choice = None, **options: Any) -> AsyncSession:
        """The same for asyncio."""
        return AsyncSession(self.session(system=system, plugin=plugin), **options)

    def load_session(self, path: str | Path, *, draft: str | None = None) -> Session:
        """A session that was saved with `Session.save`; plugins that it used must be loaded, with the same content.
        `draft` as for `session`."""
        return Session.load(self.model, path, self._draft(draft))

    def explain(self) -> dict[str, Any]:
        """What is on: architecture, state, dtype, device, draft, kernels."""
        treeless = ", ".join(sorted(self.model.decoder.treeless))
        trees = f"the likeliest path is checked: no form for trees in {treeless}" if treeless else "checked whole"
        draft = {"draft": "none" if self.draft is None else self.draft.name, "draft_trees": trees}
        return {**self.model.explain(), **draft}

    def _draft(self, name: str | None) -> Draft | None:
        if name is None or name == "none":
            return self.draft if name is None else None
        draft = drafting(name, self.model)
        self.model.depths.measure(self.model.decoder)
        return draft


def load(
    name: str | Path = "pebble",
    *,
    dtype: str | torch.dtype | None = None,
    quant: str | None = None,
    state_dtype: str = "fp32",
    kv: str = "exact",
    plugins: Mapping[str, str | Path] | None = None,
    draft: str | None = None,
    cache: Cache | None = None,
    offline: bool = False,
) -> Engine:
    """An engine on a bundled model ("pebble"), a checkpoint folder or a hub name. `plugins`: folders by the names that
    sessions use. `draft` lets one forward give several tokens, which stay the model's own: "ngram" (look-up in what
    was said), "mtp" (the checkpoint's own head for it), "head" (one that was trained for the model), or the name of a
    smaller model with the same vocabulary. `cache`: what sessions have in common is read once. Other arguments and
    errors: as `load_model`."""
    model = load_model(name, dtype=dtype, quant=quant, state_dtype=state_dtype, kv=kv, offline=offline)
    model.cache = None if cache is None else StateCache(cache, model)
    engine = Engine(model, None if draft in (None, "none") else drafting(draft, model, offline=offline))
    for plugin, path in (plugins or {}).items():
        engine.plugins.load(path, plugin)
    if engine.draft is not None:
        model.depths.measure(model.decoder)
    return engine
