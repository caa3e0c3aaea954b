"""`Intake`: how text, images, videos and frames enter a session's memory, as far as the chat template shows them.

Each turn feeds only what is new; live frames and texts enter at a cost that does not grow with the turn.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.encoders.frame import Frame
from fluvial.engine.draft import Draft
from fluvial.engine.events import PushResult
from fluvial.engine.feed import Feed
from fluvial.engine.media import Encoding, Medium, medium_of
from fluvial.engine.model import Model
from fluvial.engine.plugins import Choice
from fluvial.engine.reading import Progress, opened, pieces_of, read
from fluvial.engine.snapshot import RECENT, Repeat, Snapshot, add_digest
from fluvial.engine.template import Media, Message, Part, Rewritten, Text
from fluvial.engine.turns import SENTINEL, before_sentinel, so_far


class Intake:
    """What a session has read; it is a `Session` that answers."""

    def __init__(
        self,
        model: Model,
        *,
        system: str | None = None,
        plugin: Choice = None,
        draft: Draft | None = None,
        tenant: str = "",
        messages: Sequence[Message] = (),
    ) -> None:
        """`system` is the system prompt; `messages`: what was said before, with media in place: {"role": "user",
        "content": [{"type": "image", "image": Image(...)}, {"type": "text", "text": ...}]}."""
        if model.template is None:
            raise UnsupportedError(f"{model.name} has no chat template.", hint="Use load_model and feed ids.")
        self.model, self._template, self._draft = model, model.template, draft
        self._now = Snapshot(Feed.start(model, model.plugins.route(plugin), draft, tenant))
        if system:
            self._now = replace(self._now, messages=({"role": "system", "content": system},))
        if messages:
            self._read(messages)

    def _read(self, messages: Sequence[Message]) -> None:
        """Reads what was said before, as far as the next turn will show it."""
        said, encodings = opened(messages, self._encoding)
        self._now = replace(self._now, messages=(*self._now.messages, *said))
        self._feed_parts(so_far(self._now, self._template), encodings)

    def push(self, thing: str | Medium, *, progress: Progress | None = None) -> PushResult:
        """Adds text, an image, a video or a live frame to the user's turn and feeds it at once.

        Raises `MediaError` for what cannot be read and `UnsupportedError` for media that the model cannot see; the
        session is then as it was before.
        """
        before = self._now
        try:
            if isinstance(thing, str):
                if not thing.strip():
                    raise UsageError("The text is empty.")
                self._settle()
                self._extend([{"type": "text", "text": thing + "\n"}], [])
                return PushResult(self._now.new_tokens - before.new_tokens)
            medium = medium_of(thing)
            if isinstance(medium, Frame):
                return self._push_frame(medium)
            self._settle()
            encoding = self._encoding(medium)
            self._extend([encoding.part], [encoding], progress)
            return PushResult(self._now.new_tokens - before.new_tokens, encoding.frames, encoding.warning)
        except BaseException:
            self._now = before
            raise

    def _push_frame(self, frame: Frame) -> PushResult:
        waiting, before = (*self._now.waiting, frame), self._now.new_tokens
        self._now = replace(self._now, waiting=waiting)
        if self.model.tower is None or len(waiting) >= self.model.tower.frames_per_step:
            self._settle()
        return PushResult(self._now.new_tokens - before, 1)

    def _settle(self) -> None:
        """Feeds live frames that are still waiting for their step to fill."""
        if self._now.waiting:
            now, encoding = self._now, self._encoding(list(self._now.waiting))
            self._now = replace(now, waiting=())
            if now.repeat.known:
                self._feed_parts(list(now.repeat.parts), [encoding], streamed=True)
            else:
                parts = self._extend([encoding.part], [encoding])
                self._now = replace(self._now, repeat=now.repeat.after(parts))

    def _encoding(self, medium: Medium | list[Frame]) -> Encoding:
        feed, cache = self._now.feed, self.model.cache
        known = cache is not None and (feed.chain is not None or feed.position == 0)
        return Encoding(self.model, medium, feed.route, cache.seen(feed, medium) if cache and known else None)

    def stream(self, text: str) -> PushResult:
        """Adds text to the user's turn as an event among live frames: at the same cost however long the turn is, and
        kept in memory only, not in `messages`. A turn that begins with it has it as `push` would."""
        if not self._now.open_turn and not self._now.waiting:
            return self.push(text)
        before = self._now
        try:
            if not text.strip():
                raise UsageError("The text is empty.")
            self._settle()
            self._feed_parts([Text(text + "\n")], [], streamed=True)
        except BaseException:
            self._now = before
            raise
        return PushResult(self._now.new_tokens - before.new_tokens)

    def _extend(
        self, parts: Sequence[dict[str, Any]], media: list[Encoding], progress: Progress | None = None
    ) -> list[Part]:
        """Feeds more of the open turn: all that the template renders before the turn's end, which it returns."""
        turn = (*self._now.open_turn, *parts)
        probe = {"role": "user", "content": [*turn, {"type": "text", "text": SENTINEL}]}
        new = before_sentinel(self._continuation([probe], generation=False))
        self._now = replace(self._now, open_turn=turn, repeat=Repeat())
        self._feed_parts(new, media, progress)
        return new

    def _continuation(self, new: list[dict[str, Any]], *, generation: bool) -> list[Part]:
        """What to feed for `new` messages; a template that rewrites history re-feeds a text conversation."""
        now = self._now
        found = self._template.continuation(now.messages, new, fed=now.fed, add_generation_prompt=generation)
        if not isinstance(found, Rewritten):
            return found.parts
        if now.streamed or any(isinstance(part, Media) for part in now.fed):
            raise UnsupportedError(
                "This chat template rewrites earlier turns, which hold media that are gone.", found.why
            )
        self._now = replace(now, feed=Feed.start(self.model, now.feed.route, self._draft, now.feed.tenant), fed=())
        return found.parts

    def _feed_parts(
        self,
        parts: list[Part],
        media: list[Encoding],
        progress: Progress | None = None,
        *,
        streamed: bool = False,
        cached: bool = True,
    ) -> None:
        """Feeds parts of a rendered conversation. What is `streamed` leaves no trace but in memory, so that a stream
        may go on for hours: the template never sees it again."""
        began, now, digests = time.perf_counter(), self._now, list(self._now.media)
        pieces, tail = pieces_of(parts, media, now.tail, now.feed)
        reading = read(now.feed, pieces, progress, cached=cached)
        new = reading.feed.position - now.feed.position
        for encoding in media:
            digests = add_digest(digests, encoding.digest, streamed)
        self._now = replace(
            now,
            feed=reading.feed,
            fed=now.fed if streamed else (*now.fed, *parts),
            streamed=now.streamed + (new if streamed else 0),
            tail=tail,
            media=tuple(digests),
            ids=(*now.ids, *(id for piece in pieces for id in piece.ids))[-RECENT:],
            new_tokens=now.new_tokens + new,
            new_media_tokens=now.new_media_tokens + reading.media_tokens,
            new_cached_tokens=now.new_cached_tokens + reading.cached_tokens,
            new_misses=tuple(dict.fromkeys((*now.new_misses, *reading.misses))),
            new_seconds=now.new_seconds + time.perf_counter() - began,
        )
