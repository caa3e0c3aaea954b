"""Saved sessions: one safetensors file with the state, the last logits, the sampler's state, and what was fed.

The file names the model it belongs to (decoder, tower and template), so that a mismatch is an error, not nonsense.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluvial.adapters.errors import IntegrityError
from fluvial.engine.cache.chain import Chain, Symbol
from fluvial.engine.draft import Draft, Seen
from fluvial.engine.feed import Feed
from fluvial.engine.model import Model
from fluvial.engine.snapshot import Snapshot
from fluvial.engine.template import Media, Part, Special, Text
from fluvial.models.state import State
from fluvial.models.state_file import read_checked, write_atomically

KIND = "fluvial-session"


def save(now: Snapshot, path: Path) -> None:
    """Writes a session's memory atomically."""
    feed = now.feed
    tensors, about = feed.state.pack()
    tensors = {f"state.{name}": tensor for name, tensor in tensors.items()}
    if feed.logits is not None:
        tensors["logits"] = feed.logits
    if now.sampler is not None:
        tensors["sampler"] = now.sampler
    if feed.draft is not None:
        packed, told = feed.draft.pack()
        tensors |= {f"draft.{name}": tensor for name, tensor in packed.items()}
        about |= {"draft": json.dumps({"name": feed.draft.name, "about": dict(told)})}
    if feed.chain is not None and not feed.chain.given_up:
        tensors["past"], about["past"] = _symbols_packed(feed.chain)
    memory = {
        "messages": now.messages,
        "open_turn": now.open_turn,
        "fed": [_part_to_json(part) for part in now.fed],
        "streamed": now.streamed,
        "tail": now.tail,
        "media": now.media,
        "ids": now.ids,
    }
    memory["history"] = _history(memory, feed.position)
    about |= {"plugins": json.dumps(feed.route.saved if feed.route else {})}
    about |= {"name": feed.model.name, "whole_model": feed.model.fingerprint()}
    write_atomically(path, KIND, tensors, about | {"memory": json.dumps(memory)})


def load(model: Model, path: Path, draft: Draft | None = None, tenant: str = "") -> Snapshot:
    """Reads what `save` wrote, for sessions that draft with `draft` (given before its first token); raises
    `IntegrityError` for damage, another model, or a plugin that is not loaded."""
    tensors, about = read_checked(path, (KIND,))
    if about.get("whole_model") != model.fingerprint():
        raise IntegrityError(
            f"{path} belongs to another model.",
            f"It was saved with {about.get('name')}, this is {model.name} or other weights.",
            "Load the model that it was saved with.",
        )
    try:
        state_tensors = {n.removeprefix("state."): t for n, t in tensors.items() if n.startswith("state.")}
        state = State.unpack(state_tensors, about, model.decoder.fingerprint())
        model.decoder.check(state)
        memory: dict[str, Any] = json.loads(about["memory"])
        route = model.plugins.restored(json.loads(about.get("plugins", "{}")))
        feed = Feed(model, state, tensors.get("logits"), route, tenant=tenant)
        if draft is not None:
            feed = replace(feed, draft=_draft(draft, tensors, about, Seen(memory["ids"], route=route)))
        if model.cache is not None and feed.position:
            feed = model.cache.restored(feed, _symbols(tensors, about), about["digest"])
        return Snapshot(
            feed=feed,
            messages=tuple(memory["messages"]),
            open_turn=tuple(memory["open_turn"]),
            fed=tuple(_part_from_json(part) for part in memory["fed"]),
            streamed=int(memory["streamed"]),
            tail=memory["tail"],
            media=tuple(memory["media"]),
            ids=tuple(memory["ids"]),
            sampler=tensors.get("sampler"),
        )
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise IntegrityError(
            f"{path} is damaged.", repr(error), "Restore it from a copy; nothing was loaded."
        ) from error


def _draft(draft: Draft, tensors: Mapping[str, Tensor], about: Mapping[str, str], recent: Seen) -> Draft:
    """The draft as it was saved; one of another kind, or on other weights, begins with the recent tokens."""
    saved = json.loads(about.get("draft", "{}"))
    if saved.get("name") == draft.name:
        parts = {name.removeprefix("draft."): t for name, t in tensors.items() if name.startswith("draft.")}
        with contextlib.suppress(IntegrityError):
            return draft.unpack((parts, saved["about"]))
    return draft.observe(recent)


def _symbols_packed(chain: Chain) -> tuple[Tensor, str]:
    """What was read, for the cache: int32 [n], ids, or where symbols of another kind stand, -1 and on in their list."""
    others, ids = list[str](), list[int]()
    for symbol in (symbol for run in chain.whole() for symbol in run.symbols):
        if isinstance(symbol, str):
            others.append(symbol)
        ids.append(-len(others) if isinstance(symbol, str) else symbol)
    return torch.tensor(ids, dtype=torch.int32), json.dumps(others)


def _symbols(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> list[Symbol]:
    others = json.loads(about.get("past", "[]"))
    return [id if id >= 0 else others[-id - 1] for id in (tensors["past"].tolist() if "past" in tensors else ())]


def _history(memory: dict[str, Any], position: int) -> str:
    """A hash of what was fed, words, control tokens and media in their order: alike for the same past."""
    past = [memory[key] for key in ("fed", "media", "ids", "streamed")]
    return hashlib.sha256(json.dumps([past, position]).encode()).hexdigest()


def _part_to_json(part: Part) -> list[Any]:
    if isinstance(part, Media):
        return ["media", part.kind, part.index, part.text]
    return ["text" if isinstance(part, Text) else "special", part.text]


def _part_from_json(part: list[Any]) -> Part:
    kind, *values = part
    return {"media": Media, "text": Text, "special": Special}[kind](*values)
