"""Where published folders keep their chat template, and how they name the placeholders of media."""

from __future__ import annotations

from pathlib import Path

from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.engine.tokenizer import TextTokenizer
from fluvial.engine.tokenizer_files import read_json


def template_source(folder: Path, name: str) -> str:
    """The template called `name`. Errors: IntegrityError; UnsupportedError without any; UsageError without that one."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text("utf-8")
        except ValueError as error:
            raise IntegrityError(f"{path} is corrupt:", f"{error}.", "Download the model again.") from error
    for file in ("chat_template.json", "tokenizer_config.json"):
        found = read_json(folder / file).get("chat_template")
        if isinstance(found, str):
            return found
        if isinstance(found, list):
            named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
            if isinstance(source := named.get(name), str):
                return source
            raise UsageError(f"The model has no chat template {name!r}.", f"It has {sorted(map(str, named))}.")
    raise UnsupportedError(f"The model in {folder} has no chat template.", hint="Give one, or feed plain text.")


def media_token(folder: Path, kind: str, tokenizer: TextTokenizer) -> str | None:
    """The placeholder of a kind of medium: by name in the tokenizer's or processor's file, or by id in the model's."""
    named = tokenizer.names.get(f"{kind}_token") or read_json(folder / "processor_config.json").get(f"{kind}_token")
    if isinstance(named, str):
        return named
    config = read_json(folder / "config.json")
    found = config.get(f"{kind}_token_id", config.get(f"{kind}_token_index"))
    placeholder = _UNNAMED.get((config.get("model_type"), kind))
    return next((token.text for token in tokenizer.controls if token.id == found), placeholder)


# what no file of a folder says: SmolVLM2's templates are older than its videos
_UNNAMED: dict[tuple[object, str], str] = {("smolvlm", "video"): "<video>"}
_AN_IMAGE = "{% elif line['type'] == 'image' %}{{ '<image>' }}"


def shows_videos(source: str, placeholder: str | None) -> str:
    """The template with a place for videos where it has one for images, if it is SmolVLM2's without."""
    if placeholder is None or placeholder in source:
        return source
    return source.replace(_AN_IMAGE, _AN_IMAGE + _AN_IMAGE.replace("image", placeholder.strip("<>")), 1)
