"""Turns and templates: where an open turn ends, and what to do with a template that rewrites what was said.

Some templates render a finished answer differently from how it was generated (they drop its thinking). Memory then
follows the template: it goes back to where the generation prompt began, and the answer is fed as the next turns will
show it. Without this a rewritten turn would need all of its past again, images included.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile

from fluvial.adapters.errors import FluvialError
from fluvial.engine.snapshot import RECENT, Snapshot
from fluvial.engine.template import MEDIA, ChatTemplate, Media, Part, Rewritten, Text, encode_parts, merged

SENTINEL = "\ue0f1\ue0f2"  # private-use characters: marks the end of what a turn holds so far


def before_sentinel(parts: list[Part]) -> list[Part]:
    """The parts up to the sentinel."""
    kept: list[Part] = []
    for part in parts:
        if isinstance(part, Text) and SENTINEL in part.text:
            head = part.text.partition(SENTINEL)[0]
            return [*kept, Text(head)] if head else kept
        kept.append(part)
    return kept


def as_history(now: Snapshot, before: Snapshot, template: ChatTemplate) -> Snapshot:
    """`now`, a finished answer, as the template will show it from the next turn on; `before` stands at the end of the
    user's turn, in front of the generation prompt. The same memory where the template rewrites nothing, or only puts
    the space itself that the answer began with: its message then goes without."""
    said = now.messages[-1]
    for content in dict.fromkeys((said["content"], said["content"].lstrip())):
        unchanged = replace(now, messages=(*now.messages[:-1], {**said, "content": content}))
        if _next_turn(template, unchanged, now.fed) is not None:
            return unchanged
    parts = _next_turn(template, now, before.fed)
    if parts is None:  # it rewrites more than the last answer: the next turn has to start anew
        return now
    feed, ids = before.feed, list(before.ids)
    tokenizer = feed.model.tokenizer
    for run in encode_parts(parts, tokenizer, first=feed.position == 0):
        assert not isinstance(run, Media)
        feed = feed.ids(run)
        ids += run
    return replace(now, feed=feed, fed=(*before.fed, *parts), ids=tuple(ids[-RECENT:]))


def so_far(now: Snapshot, template: ChatTemplate) -> list[Part]:
    """What a conversation whose `messages` were given adds to what is fed, whatever the next turn begins with."""
    return _next_turn(template, now, now.fed) or []


def _next_turn(template: ChatTemplate, now: Snapshot, fed: tuple[Part, ...]) -> list[Part] | None:
    """What the next user's turn adds to `fed` before its content, whether that begins with text or with a medium; None
    where the template writes what was fed differently."""
    contents = (message["content"] for message in now.messages)
    seen = sum(part["type"] in MEDIA for content in contents if isinstance(content, list) for part in content)
    turns: list[list[Part]] = []
    end = {"type": "text", "text": SENTINEL}
    for content in (SENTINEL, *([{"type": kind}, end] for kind in template.media)):
        try:
            probe = [{"role": "user", "content": content}]
            found = template.continuation(now.messages, probe, fed=fed, add_generation_prompt=False)
        except FluvialError:
            if content == SENTINEL:
                raise
            continue  # this template has no place for such a medium
        if isinstance(found, Rewritten):
            return None
        turns.append(
            list(takewhile(lambda part: not isinstance(part, Media) or part.index < seen, before_sentinel(found.parts)))
        )
    return _shared(turns)


def _shared(turns: list[list[Part]]) -> list[Part]:
    """What all of them begin with."""
    shared: list[Part] = []
    for parts in zip(*turns, strict=False):
        if len(set(parts)) > 1:
            letters = zip(*(part.text if isinstance(part, Text) else "" for part in parts), strict=False)
            head = "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, letters))
            return merged([*shared, Text(head)])
        shared.append(parts[0])
    return shared
