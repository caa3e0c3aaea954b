"""Saved sessions: one safetensors file with the state, the last logits, the sampler's state, and what was fed.

The file names the model it belongs to (decoder, tower and template), so that a mismatch is an error, not nonsense.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from fluvial.adapters.errors import IntegrityError
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


def load(model: Model, path: Path) -> Snapshot:
    """Reads what `save` wrote; raises `IntegrityError` for damage, another model, or a plugin that is not loaded."""
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
        return Snapshot(
            feed=Feed(model, state, tensors.get("logits"), route),
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
