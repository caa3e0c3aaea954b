"""Turns and templates: where an open turn ends, and what to do with a template that rewrites what was said.

Some templates render a finished answer differently from how it was generated (they drop its thinking). Memory then
follows the template: it goes back to where the generation prompt began, and the answer is fed as the next turns will
show it. Without this a rewritten turn would need all of its past again, images included.
"""

from __future__ import annotations

from dataclasses import replace

from fluvial.engine.snapshot import RECENT, Snapshot
from fluvial.engine.template import ChatTemplate, Media, Part, Rewritten, Text, encode_parts

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
    user's turn, in front of the generation prompt. The same `now` where the template rewrites nothing."""
    probe = [{"role": "user", "content": SENTINEL}]
    if not isinstance(template.continuation(now.messages, probe, fed=now.fed, add_generation_prompt=False), Rewritten):
        return now
    found = template.continuation(now.messages, probe, fed=before.fed, add_generation_prompt=False)
    if isinstance(found, Rewritten):  # it rewrites more than the last answer: the next turn has to start anew
        return now
    parts, feed, ids = before_sentinel(found.parts), before.feed, list(before.ids)
    tokenizer = feed.model.tokenizer
    for run in encode_parts(parts, tokenizer, first=feed.position == 0):
        assert not isinstance(run, Media)
        feed = feed.ids(run)
        ids += run
    return replace(now, feed=feed, fed=(*before.fed, *parts), ids=tuple(ids[-RECENT:]))
