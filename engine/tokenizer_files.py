"""Reading what published folders say about their tokens: `tokenizer.json`, `tokenizer_config.json` and their like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fluvial.adapters.errors import IntegrityError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} without the file. Errors: IntegrityError if it is no JSON object."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is corrupt:", f"{error}.", "Download the model again.") from error
    if not isinstance(found, dict):
        raise IntegrityError(f"{path} is corrupt:", "it is not a JSON object.", "Download the model again.")
    return found


def content(token: Any) -> str:
    """The text of a token that is written as a string or as an object."""
    return token["content"] if isinstance(token, dict) else token if isinstance(token, str) else ""


def mapping(value: Any) -> dict[str, Any]:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def added_tokens(data: dict[str, Any], config: dict[str, Any], named: set[str]) -> list[dict[str, Any]]:
    """The added tokens of both files, by id; those that the configuration names are special."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    added = {token["id"]: plain | token for token in data.get("added_tokens") or []}
    for id, token in mapping(config.get("added_tokens_decoder")).items():
        added.setdefault(int(id), plain | token | {"id": int(id)})
    known = {token["content"] for token in added.values()}
    vocab = mapping(data.get("model")).get("vocab")
    for key in ("bos_token", "eos_token"):
        name = content(config.get(key))
        if isinstance(vocab, dict) and name in vocab and name not in known:
            added[vocab[name]] = plain | {"id": vocab[name], "content": name}
    return [added[id] | {"special": added[id]["special"] or added[id]["content"] in named} for id in sorted(added)]


def replaced(value: Any, key: str, old: str, new: str) -> Any:
    """A copy of JSON-like `value` in which every `key` that was `old` is `new`."""
    if isinstance(value, dict):
        return {k: new if k == key and v == old else replaced(v, key, old, new) for k, v in value.items()}
    return [replaced(item, key, old, new) for item in value] if isinstance(value, list) else value


def unknown_token(model: dict[str, Any]) -> str | None:
    """What a vocabulary says for text it lacks: it may come from any text."""
    if model.get("type") == "Unigram" and isinstance(model.get("unk_id"), int):
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")
