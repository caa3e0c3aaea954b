"""Texts to remember: key=value pairs and pass keys buried in filler, and strings to copy.

A key, its value's statement and a pass key occur once in a text, so there is never a second answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np

from .filler import FILLER_KINDS, LETTERS, filler, picks
from .filler_words import ENGLISH
from .phrasings import ask
from .scene import COLOURS, QA, SHAPES, Sample

TEXT_TASKS = ("recall", "passkey", "copy")
_KEYS = """
alpha beta gamma delta apple lemon tiger panda mango berlin tokyo paris oslo lima piano drum flute pepper salt
copper iron zinc nickel mars venus pluto rocket ladder hammer anchorage ruby pearl amber jade door7 room3
gate9 key1 user name size mode port speed limit height colour shape total price age rank team seat
"""
KEYS = tuple(_KEYS.split())
RESERVED = ("is", "of", "to", "set", "the", "key", "that", "note", "pass", "it")  # words of the statements
PAIRS = (
    "{k}={v}", "{k} = {v}", "{k}: {v}", "{k} is {v}.", "The value of {k} is {v}.", "Remember: {k} = {v}.",
    "set {k} to {v};", "Note that {k} is {v}.", "{k} -> {v}", '"{k}": "{v}"',
)  # fmt: skip
PASSKEYS = (
    "The pass key is {v}.", "Remember the pass key: {v}.", "pass key = {v}", "The pass key is {v}. Remember it.",
    "Note: the pass key is {v}.", "Here is the pass key: {v}",
)  # fmt: skip


def _value(rng: np.random.Generator) -> str:
    if rng.random() < 0.65:
        return str(rng.integers(0, 10 ** int(rng.integers(1, 5))))
    return picks(rng, (*COLOURS, *SHAPES, *ENGLISH[0]["N"][:24]), 1)[0]


def _key(rng: np.random.Generator, text: str, taken: Sequence[str]) -> str:
    for attempt in range(30):
        if rng.random() < 0.6 and attempt < 20:
            key = picks(rng, KEYS, 1)[0]
        else:
            key = "".join(picks(rng, LETTERS, int(rng.integers(1, 4)) + attempt // 5))
        if key not in (*taken, *RESERVED) and not re.search(rf"(?<!\w){key}(?!\w)", text):
            break
    return key


def _string(rng: np.random.Generator) -> str:
    kind = int(rng.integers(6))
    if kind == 0:
        return " ".join(picks(rng, ENGLISH[0]["N"], int(rng.integers(1, 5))))
    if kind == 1:
        return "".join(picks(rng, LETTERS + LETTERS.upper() + "0123456789", int(rng.integers(2, 13))))
    if kind == 2:
        return str(rng.integers(0, 10 ** int(rng.integers(1, 10))))
    if kind == 3:
        return json.dumps({picks(rng, KEYS, 1)[0]: _value(rng)})
    return filler(rng, int(rng.integers(2, 24)), picks(rng, FILLER_KINDS, 1)[0]).strip().replace("\n", " ") or "ok"


def _pieces(rng: np.random.Generator, total: int, n: int, level: float, held_out: bool) -> list[str]:
    """n pieces of filler with `total` characters together; often one kind throughout, else a kind per piece."""
    cuts = np.sort(rng.integers(0, total + 1, n - 1)).tolist()
    lengths = [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
    kinds = ("english", "pseudo", "letters", "digits") if level < 0.3 and not held_out else FILLER_KINDS
    kind = None if held_out else picks(rng, kinds, 1)[0]
    if rng.random() < 0.5 and not held_out:
        return [filler(rng, k, picks(rng, kinds, 1)[0]) for k in lengths]
    return [filler(rng, k, kind, held_out) for k in lengths]


def text_sample(
    rng: np.random.Generator,
    level: float,
    length_chars: int,
    tasks: Sequence[str] | None = None,
    held_out: bool = False,
) -> Sample:
    """A text of about `length_chars` characters (more where the facts alone need it) with 1 to 4 questions about it.

    `held_out=True` buries the facts in filler of kinds never trained on. Raises ValueError for an unknown task.
    """
    tasks = TEXT_TASKS if tasks is None else tasks
    if set(tasks) - set(TEXT_TASKS) or not tasks:
        raise ValueError(f"unknown text tasks {sorted(set(tasks) - set(TEXT_TASKS))}; there are {TEXT_TASKS}")
    task = picks(rng, tasks, 1)[0]
    pairs = 0
    if task == "recall":
        pairs = int(rng.integers(1, 3 + round(6 * level)))
    elif task == "passkey" and "recall" in tasks and rng.random() < 0.3:
        pairs = int(rng.integers(1, 3))
    pairs = min(pairs, max(1, length_chars // 20)) if pairs else 0
    room = max(length_chars - 20 * pairs - (32 if task == "passkey" else 0), 0)
    facts: list[str] = []
    qa: list[QA] = []
    pieces = _pieces(rng, room, pairs + 1 + (task == "passkey"), level, held_out)
    whole = "\n".join(pieces)
    if task == "passkey":
        number = str(rng.integers(10000, 100000))
        while number in whole:
            number = str(rng.integers(10000, 100000))
        facts.append(picks(rng, PASSKEYS, 1)[0].format(v=number))
        qa.append(QA("passkey", ask(rng, "passkey"), number))
    form = picks(rng, PAIRS, 1)[0]
    known: dict[str, str] = {}
    for _ in range(pairs):
        key, value = _key(rng, whole, tuple(known)), _value(rng)
        known[key] = value
        one = form if rng.random() < 0.7 else picks(rng, PAIRS, 1)[0]
        facts.append(one.format(k=key, v=value))
    asked = [list(known)[i] for i in rng.permutation(len(known))[: int(rng.integers(1, 5))]]
    qa += [QA("recall", ask(rng, "recall", key=key), known[key]) for key in asked]
    qa = qa[:4]
    if task == "copy":
        strings = [_string(rng) for _ in range(int(rng.integers(1, 4)))]
        qa = [QA("copy", ask(rng, "copy", text=s), s) for s in strings]
    gap = picks(rng, (" ", "\n"), 1)[0]
    order = rng.permutation(len(facts)).tolist()
    body = [pieces[0]]
    for i, piece in zip(order, pieces[1:], strict=True):
        body += [facts[i], piece]
    return Sample(text=gap.join(p for p in body if p), qa=qa)
