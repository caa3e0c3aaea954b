"""What a saved state or session holds, and where two of them part: for people who keep them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluvial.adapters.errors import IntegrityError
from fluvial.engine.saved import KIND as SESSION
from fluvial.models.state import KIND as STATE
from fluvial.models.state import Leaf, State, wide
from fluvial.models.state_file import read_checked
from fluvial.models.tape import Tape


@dataclass(frozen=True)
class Saved:
    """A file of either kind: the decoder's state, and for a session what was said and seen (`memory`)."""

    kind: str
    state: State
    about: dict[str, str]
    memory: dict[str, Any]


def read(path: str | Path) -> Saved:
    """Reads and checks a saved state or session without its model. Errors: IntegrityError."""
    tensors, about = read_checked(Path(path), (STATE, SESSION))
    try:
        prefix = "state." if about["format"] == SESSION else ""
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        return Saved(about["format"], State.unpack(own, about), about, json.loads(about.get("memory", "{}")))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} is damaged.", repr(error), "Restore it from a copy.") from error


def describe(saved: Saved) -> dict[str, Any]:
    """What it belongs to and what it holds; bytes are those of the values, not of the file."""
    state, memory = saved.state, saved.memory
    tapes = [leaf for leaf in state.leaves.values() if isinstance(leaf, Tape)]
    return {
        "kind": saved.kind,
        "version": saved.about["version"],
        "model": saved.about.get("name", ""),
        "fingerprint": str(state.model),
        "position": list(state.position),
        "leaves": len(state.leaves),
        "state_dtype": state.dtype,
        "state_bytes": state.nbytes("recurrent"),
        "tape_bytes": sum(rows.nbytes for tape in tapes for rows in tape.stored),
        "tape_tokens": max((n for tape in tapes for n in tape.lengths), default=0),
        "plugins": json.loads(saved.about.get("plugins", "{}")),
        "draft": json.loads(saved.about.get("draft", "{}")).get("name", "none"),
        "history": memory.get("history", ""),
        "messages": memory.get("messages", []),
        "open_turn": memory.get("open_turn", []),
        "media": memory.get("media", []),
    }


def compare(a: Saved, b: Saved) -> dict[str, Any]:
    """Where two files differ: `fields` with both values, how many `messages` and media they begin with alike, and
    `leaves` with the largest difference, relative to the largest value (None: of another shape, or in one only)."""
    left, right = describe(a), describe(b)
    names = sorted(a.state.leaves.keys() | b.state.leaves.keys())
    leaves = {name: _gap(a.state.leaves.get(name), b.state.leaves.get(name)) for name in names}
    listed = ("messages", "open_turn", "media")
    differing = {key: [left[key], right[key]] for key in left if key not in listed and left[key] != right[key]}
    shared = {key: _alike(left[key], right[key]) for key in listed}
    same_talk = all(shared[key] == len(left[key]) == len(right[key]) for key in listed)
    return {
        "equal": same_talk and not differing and all(gap == 0 for gap in leaves.values()),
        "fields": differing,
        "shared": shared,
        "leaves": {name: gap for name, gap in leaves.items() if gap != 0},
    }


def _alike(a: list[Any], b: list[Any]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))))


def _gap(a: Leaf | None, b: Leaf | None) -> float | None:
    left, right = _values(a), _values(b)
    if len(left) != len(right) or not left or any(x.shape != y.shape for x, y in zip(left, right, strict=True)):
        return None
    if all(torch.equal(x, y) for x, y in zip(left, right, strict=True)):
        return 0.0
    sizes = [max(float(x.abs().max()), float(y.abs().max()), 1e-30) for x, y in zip(left, right, strict=True)]
    gaps = [float((x.double() - y.double()).abs().max()) for x, y in zip(left, right, strict=True)]
    return max(gap / size for gap, size in zip(gaps, sizes, strict=True))


def _values(leaf: Leaf | None) -> list[Tensor]:
    read = None if leaf is None else wide(leaf)
    return [] if read is None else list(read.rows) if isinstance(read, Tape) else [read]
