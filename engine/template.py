"""Chat templates: messages in, the pieces to feed out, each control token and each medium at its place.

A message is `{"role": ..., "content": str | [{"type": "text", "text": str} | {"type": "image"} | {"type": "video"}]}`,
as in Transformers. The template is jinja2 (`template_files.py` finds it), run in a sandbox (`sandbox.py`);
`template_parts.py` tells the template's control tokens from the ones that users type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fluvial.adapters.errors import FluvialError, UnsupportedError, UsageError
from fluvial.engine.sandbox import compile_template, run_template
from fluvial.engine.sandbox_budget import Limits
from fluvial.engine.template_files import media_token, shows_videos, template_source
from fluvial.engine.template_parts import Media, Part, Special, Text, Tracer, before_media, encode_parts, merged
from fluvial.engine.tokenizer import ControlToken, TextTokenizer, Tokenizer

__all__ = ["MEDIA", "ChatTemplate", "Continuation", "Limits", "Media", "Part", "Rewritten", "Special", "Text"]
__all__ += ["before_media", "encode_parts", "merged"]

Message = Mapping[str, Any]
MEDIA = ("image", "video")
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_PROBE = "fluvialprobe"


@dataclass(frozen=True)
class Continuation:
    """The template is prefix-stable here: after what was fed, feed `parts`."""

    parts: list[Part]


@dataclass(frozen=True)
class Rewritten:
    """The template writes the earlier turns differently from what was fed (it may drop old thinking). `parts` is the
    whole chat to feed anew; its first `shared` parts are as they were fed, so that a snapshot taken there still holds;
    `why` shows where they part."""

    parts: list[Part]
    shared: int
    why: str


class ChatTemplate:
    """One template with the control tokens, media placeholders and named tokens of its model."""

    def __init__(
        self,
        source: str,
        *,
        controls: Sequence[ControlToken] = (),
        media: Mapping[str, str] | None = None,
        names: Mapping[str, str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        """`controls`: the tokenizer's control tokens; `media`: the placeholder of each kind, as {"image":
        "<|image_pad|>"}; `names`: what the template calls `bos_token`, `eos_token` and their like.

        Errors: IntegrityError for a malformed template, UnsupportedError for one that needs what is not offered."""
        self.source = source
        self.media = dict(media or {})
        self._names = dict(names or {})
        self._limits = limits or Limits()
        self._tracer = Tracer(controls, self.media)
        self._template = compile_template(source, self._limits)

    @classmethod
    def load(cls, folder: Path, tokenizer: TextTokenizer | None = None, *, name: str = "default") -> ChatTemplate:
        """The template of a model folder. `tokenizer`: that model's, if it is loaded already; `name`: which of several
        named templates. Errors: IntegrityError for a corrupt file, UnsupportedError for a model without a template,
        UsageError for a name it lacks."""
        tokenizer = tokenizer or Tokenizer.load(folder)
        source = template_source(folder, name)
        media = {kind: token for kind in MEDIA if (token := media_token(folder, kind, tokenizer))}
        source = shows_videos(source, media.get("video"))
        return cls(source, controls=tokenizer.controls, media=media, names=tokenizer.names)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> str:
        """The chat as one string, exactly as the template writes it: for people and comparisons. It is not safe to
        encode with special tokens; feed `parts`. `extra`: further variables (`tools`, `enable_thinking`).

        Errors: UsageError for malformed or refused messages, UnsupportedError for a template that fails or is
        stopped."""
        return self._render(self._checked(messages), add_generation_prompt, extra)

    def parts(self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **extra: Any) -> list[Part]:
        """The chat as pieces to feed (`encode_parts`): text, the template's control tokens, media. Errors: as `render`;
        UsageError too if the template shows other media than the messages hold."""
        checked = self._checked(messages)
        mark = self._tracer.choose_mark(checked, extra, self._names, self.source)
        marked = [self._tracer.marked_message(message, mark) for message in checked]
        rendered = self._render(marked, add_generation_prompt, self._tracer.marked(extra, mark))
        kinds = [part["type"] for message in checked for part in _media_of(message)]
        return self._tracer.split(rendered, mark, kinds)

    def continuation(
        self,
        previous: Sequence[Message],
        new: Sequence[Message],
        *,
        fed: Sequence[Part] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> Continuation | Rewritten:
        """What to feed for the `new` messages only, when `previous` has been fed already.

        `fed`: the parts as they were really fed. By default: `previous` as rendered; or, if it ends with an assistant's
        message, the prompt before it with the generation prompt and then the words of that message, without an end
        token (the state of a session that has just generated them). Errors: as `parts`."""
        if fed is None:
            replied = bool(previous) and previous[-1].get("role") == "assistant"
            before = previous[:-1] if replied else previous
            fed = self.parts(before, add_generation_prompt=replied, **extra) if before else []
            fed = [*fed, *(self.reply(_words(previous[-1])) if replied else [])]
        fed = merged(fed)
        whole = self.parts([*previous, *new], add_generation_prompt=add_generation_prompt, **extra)
        for at, old in enumerate(fed):
            now = whole[at] if at < len(whole) else None
            if now == old:
                continue
            if isinstance(now, Text) and isinstance(old, Text) and at == len(fed) - 1 and now.text.startswith(old.text):
                return Continuation([Text(now.text[len(old.text) :]), *whole[at + 1 :]])
            return Rewritten(whole, at, f"Part {at} was fed as {old!r:.80}, and is now {now!r:.80}.")
        return Continuation(whole[len(fed) :])

    def reply(self, text: str) -> list[Part]:
        """The parts of an answer as its generation fed it, for `fed`."""
        mark = self._tracer.choose_mark(text)
        return self._tracer.split(self._tracer.marked(text, mark, trusted=True), mark, [])

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, extra: Mapping[str, Any]) -> str:
        chat = {"messages": messages, "add_generation_prompt": add_generation_prompt}
        variables = {"tools": None, "documents": None} | self._names | dict(extra) | chat
        return run_template(self._template, variables, self._limits)

    @cached_property
    def _takes(self) -> tuple[bool, bool]:
        """Whether the template reads content that is (a string, a list of parts): found out by trying."""

        def tried(content: Any) -> bool:
            try:
                shown = self._render([{"role": "user", "content": content}], False, {})
            except FluvialError:
                return False
            return _PROBE in shown and "'type'" not in shown and '"type"' not in shown

        return tried(_PROBE), tried([{"type": "text", "text": _PROBE}])

    def _checked(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """The messages, their content in the shape that the template reads."""
        if not messages:
            raise UsageError("There are no messages.", hint="Give at least one.")
        checked = []
        for message in messages:
            if not isinstance(message, Mapping):
                raise UsageError(f"A message is a {type(message).__name__}.", "Give dicts with a role and a content.")
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or not _ROLE.fullmatch(role):
                raise UsageError(
                    f"A message has the role {role!r:.80}.", "Roles are short words: system, user, assistant."
                )
            if isinstance(content, list | tuple):
                content = self._shaped(content)
            elif isinstance(content, str):
                content = [{"type": "text", "text": content}] if self._takes == (False, True) else content
            elif content is not None:
                raise UsageError(
                    f"A message's content is a {type(content).__name__}.", "It is text or a list of parts."
                )
            checked.append({**message, "content": content})
        return checked

    def _shaped(self, parts: Sequence[Any]) -> Any:
        for part in parts:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in ("text", *MEDIA) or (kind == "text" and not isinstance(part.get("text"), str)):
                raise UsageError(f"A part of a message is {part!r:.80}.", "Parts are of type text, image or video.")
            if kind != "text" and (self._takes == (True, False) or kind not in self.media):
                raise UnsupportedError(f"This model's chat template has no place for a part of type {kind}.")
        if self._takes == (True, False):
            return "".join(part["text"] for part in parts)
        return [dict(part) for part in parts]


def _words(message: Message) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _media_of(message: Message) -> list[Mapping[str, Any]]:
    content = message.get("content")
    return [part for part in content if part["type"] in MEDIA] if isinstance(content, list) else []
