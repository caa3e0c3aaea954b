"""Which control tokens of a rendered chat are the template's own, and which were typed into a message.

Every string of a message is rendered as it is, except for *marks*: one character that occurs nowhere in the input is
put into the string wherever a control token could begin, end or be completed, so that no control token survives in it
unbroken. The template still strips, splits and compares the real text. Afterwards each unbroken control token is the
template's, and the marks are taken out again.

What the model itself said (an assistant's message) keeps its non-special control tokens, such as `<think>`: templates
look for them, and they were control tokens when the model made them.

Limits: marks count in `|length` and in slices of text; a template that cuts a text at a character which begins no
control token, and puts the pieces together with its own, could build one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fluvial.adapters.errors import UsageError
from fluvial.engine.tokenizer import ControlToken, TextTokenizer


@dataclass(frozen=True, slots=True)
class Text:
    """Ordinary text, from a message or from the template: encoded with `special=False`."""

    text: str


@dataclass(frozen=True, slots=True)
class Special:
    """One control token of the template, by its name in the vocabulary."""

    text: str


@dataclass(frozen=True, slots=True)
class Media:
    """The place of the conversation's medium number `index` (from 0, images and videos counted together); `text` is the
    placeholder token that the medium's embeddings replace."""

    kind: str
    index: int
    text: str


Part = Text | Special | Media
_NEVER = "(?!)"  # a pattern that matches nowhere


class Tracer:
    """Marks messages before they are rendered, and splits what was rendered.

    `controls`: the tokenizer's control tokens; `media`: the placeholder of each kind of medium."""

    def __init__(self, controls: Iterable[ControlToken], media: Mapping[str, str]) -> None:
        self._controls = {token.text: token for token in controls if token.text}
        self._kinds = {token: kind for kind, token in media.items()}
        everything = [*self._controls, *(token for token in self._kinds if token not in self._controls)]
        self._names = sorted(everything, key=len, reverse=True)
        bare = [name.strip() or name for name in self._names]
        self._begins = re.compile(f"(?<={_either(name[0] for name in bare)})")
        self._ends = re.compile(f"(?={_either(name[-1] for name in bare)})")
        hidden = [name for name in self._names if name in self._kinds or self._controls[name].special]
        self._special = re.compile("|".join(map(re.escape, hidden)) or _NEVER, re.IGNORECASE)

    def choose_mark(self, *values: Any) -> str:
        """A character that none of the strings in the JSON-like `values` holds."""
        used: set[str] = set().union(*self._names)
        for value in values:
            _collect(value, used)
        return next(chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in used)

    def marked_message(self, message: Mapping[str, Any], mark: str) -> dict[str, Any]:
        """A copy of a message with marks in its strings. Errors: UsageError for a value that is not JSON-like."""
        trusted = message["role"] == "assistant"
        made = {key: self.marked(value, mark, trusted) for key, value in message.items()}
        content = message["content"]
        if isinstance(content, str) and not trusted:
            made["content"] = self._marked_content(content, mark)
        elif isinstance(content, list):
            for part, source in zip(made["content"], content, strict=True):
                part["type"] = source["type"]
                if "text" in part and not trusted:
                    part["text"] = self._marked_content(source["text"], mark)
        return made | {"role": message["role"]}

    def marked(self, value: Any, mark: str, trusted: bool = False) -> Any:
        """A copy of JSON-like `value` with marks in its strings, but for keys that are plain words. `trusted`: the
        model said it. Errors: UsageError for a value that is not JSON-like."""
        if isinstance(value, str):
            return self._broken(value, mark) if trusted else self._ends.sub(mark, self._begins.sub(mark, value))
        if isinstance(value, Mapping):
            words = {key: isinstance(key, str) and key.isidentifier() for key in value}
            return {k if words[k] else self.marked(k, mark): self.marked(v, mark, trusted) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self.marked(item, mark, trusted) for item in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        raise UsageError(f"A message holds a {type(value).__name__}.", "Give text, numbers, lists and dicts.")

    def _marked_content(self, text: str, mark: str) -> str:
        bare, marked = text.strip(), self._ends.sub(mark, self._begins.sub(mark, text))
        if bare and any(bare.lower() in name.lower() for name in self._names):  # the template may complete it
            return marked.replace(bare[0], mark + bare[0], 1)
        return marked

    def _broken(self, text: str, mark: str) -> str:
        """`text` with a mark inside each special token."""
        at, pieces = 0, []
        while match := self._special.search(text, at):  # tokens may overlap: go on one character later
            pieces.append(text[at : match.start() + 1] + mark)
            at = match.start() + 1
        return "".join(pieces) + text[at:]

    def split(self, rendered: str, mark: str, kinds: Sequence[str]) -> list[Part]:
        """The parts of a rendered chat; neighbouring parts are never both `Text`. `kinds`: the media of the messages in
        order. Errors: UsageError if the template shows other media than the messages have."""
        # a name of one letter cannot be broken inside: it counts as broken if a mark follows
        either = "|".join(re.escape(name) + (f"(?!{mark})" if len(name) == 1 else "") for name in self._names)
        pieces = re.split(f"({either})", rendered) if either else [rendered]
        parts: list[Part] = []
        shown: list[str] = []
        for at, piece in enumerate(pieces):
            if at % 2 and piece in self._kinds:
                parts.append(Media(self._kinds[piece], len(shown), piece))
                shown.append(self._kinds[piece])
            elif at % 2:
                parts.append(Special(piece))
            else:
                text = piece.replace(mark, "")
                if at and self._strips(pieces[at - 1], "rstrip"):
                    text = text.lstrip()
                if at + 1 < len(pieces) and self._strips(pieces[at + 1], "lstrip"):
                    text = text.rstrip()
                parts += [Text(text)] if text else []
        if shown != list(kinds):
            raise UsageError(
                "The chat template does not show the media of the messages:",
                f"they hold {list(kinds)}, it shows {shown}.",
                "Use a template made for this model's media.",
            )
        return parts

    def _strips(self, name: str, side: str) -> bool:
        return name in self._controls and getattr(self._controls[name], side)


def encode_parts(parts: Iterable[Part], tokenizer: TextTokenizer, *, first: bool = True) -> list[list[int] | Media]:
    """The ids to feed: runs of ids, and each medium at its place. `first`: the parts begin the sequence.

    Errors: UsageError for a control token that the vocabulary lacks."""
    runs: list[list[int] | Media] = []
    for part in parts:
        if isinstance(part, Media):
            runs.append(part)
        else:
            if isinstance(part, Text):
                ids = tokenizer.encode(part.text, special=False, first=first)
            elif (id := tokenizer.id(part.text)) is None:
                raise UsageError(f"The tokenizer has no token {part.text!r}, which the chat template uses.")
            else:
                ids = [id]
            if runs and isinstance(runs[-1], list):
                runs[-1] += ids
            else:
                runs.append(ids)
        first = False
    return runs


def before_media(parts: Iterable[Part]) -> Iterator[tuple[list[Part], Media | None]]:
    """The words before each medium, with it; then those behind the last one, if any, with None."""
    words: list[Part] = []
    for part in parts:
        if isinstance(part, Media):
            yield words, part
            words = []
        else:
            words.append(part)
    if words:
        yield words, None


def merged(parts: Iterable[Part]) -> list[Part]:
    """The same parts with neighbouring texts joined and empty ones left out."""
    made: list[Part] = []
    for part in parts:
        if isinstance(part, Text) and made and isinstance(last := made[-1], Text):
            made[-1] = Text(last.text + part.text)
        elif part.text:
            made.append(part)
    return made


def _either(letters: Iterable[str]) -> str:
    """A pattern for any of the letters in either case."""
    cases = {case for letter in letters for case in (letter, letter.lower(), letter.upper()) if len(case) == 1}
    return "[" + "".join(map(re.escape, sorted(cases))) + "]" if cases else _NEVER


def _collect(value: Any, used: set[str]) -> None:
    if isinstance(value, str):
        used.update(value)
    elif isinstance(value, Mapping):
        _collect([*value.keys(), *value.values()], used)
    elif isinstance(value, list | tuple):
        for item in value:
            _collect(item, used)
