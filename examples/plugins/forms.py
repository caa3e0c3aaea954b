"""The forms that the LoRA plugins answer in: how a plain answer is said in each, and how what was said is read back.

`say(task, answer)` gives the form of one of pebble's own answers, None where the form has no such answers. `read(task,
text)` gives the plain answer again, None where the text is not in the form: a wrong answer in its form can be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from examples.pebble.world.scene import article

IMAGES = ("colour", "shape", "count", "count_by", "exists", "position", "describe", "size")
VIDEOS = ("first", "last", "moving", "direction", "video_count")
TEXTS = ("recall", "passkey")
COUNTS = ("count", "count_by", "video_count")
WORDLESS = (*TEXTS, "chat")  # whose answers are not pebble's own words for what it sees


@dataclass(frozen=True)
class Form:
    """A way to answer."""

    say: Callable[[str, str], str | None]
    read: Callable[[str, str], str | None]


def _named(things: list[str]) -> str:
    """Pebble's own list: an orange star, a red cross."""
    return ", ".join(f"{article(thing)} {thing}" for thing in things)


def _things(answer: str) -> list[str]:
    return [thing.partition(" ")[2] for thing in answer.split(", ")]


# --- one line of JSON for a program: {"answer": 3} ------------------------------------------------------------------


def _to_json(task: str, answer: str) -> str:
    value: object = answer
    if task in COUNTS:
        value = int(answer)
    elif task == "exists":
        value = answer == "yes"
    elif task == "describe":
        value = _things(answer)
    return json.dumps({"answer": value})


def _from_json(task: str, text: str) -> str | None:
    try:
        said = json.loads(text)
    except ValueError:
        return None
    if not isinstance(said, dict) or set(said) != {"answer"}:
        return None
    value = said["answer"]
    if task in COUNTS:
        return str(value) if type(value) is int else None
    if task == "exists":
        return ("no", "yes")[value] if type(value) is bool else None
    if task == "describe":
        whole = isinstance(value, list) and all(isinstance(thing, str) and thing for thing in value)
        return _named(value) if whole else None
    return value if isinstance(value, str) else None


# --- a record for an inspector's log: colour=red --------------------------------------------------------------------

_FIELD = dict.fromkeys(COUNTS, "count") | {
    "exists": "seen",
    "position": "place",
    "describe": "things",
    "size": "largest",
}


def _to_record(task: str, answer: str) -> str | None:
    return None if task in WORDLESS else f"{_FIELD.get(task, task)}={answer}"


def _from_record(task: str, text: str) -> str | None:
    field, equals, answer = text.partition("=")
    return answer if equals and field == _FIELD.get(task, task) else None


FORMS = {"json": Form(_to_json, _from_json), "record": Form(_to_record, _from_record)}
