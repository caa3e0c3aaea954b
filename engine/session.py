"""`Session`: one conversation. Push text, images, video and frames as they come; ask; go on. Each turn feeds only
what is new.

Everything that a session remembers is a value (`Feed`, messages, what was fed), so a fork or a snapshot is a
shallow copy and an answer that is cancelled leaves the session at its last committed token.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.encoders.frame import Frame
from fluvial.engine import saved
from fluvial.engine.answer import Answer
from fluvial.engine.depth import Depth
from fluvial.engine.draft import Draft, Seen
from fluvial.engine.events import Event, PushResult
from fluvial.engine.feed import Feed
from fluvial.engine.media import Encoding, Medium, medium_of
from fluvial.engine.model import Model
from fluvial.engine.plugins import Blend, Choice
from fluvial.engine.reading import Progress, opened, pieces_of, read
from fluvial.engine.sampling import Sampler, SamplingParams
from fluvial.engine.snapshot import RECENT, Repeat, Snapshot, add_digest
from fluvial.engine.template import Media, Message, Part, Rewritten, Text
from fluvial.engine.text_stream import TextStream
from fluvial.engine.turns import SENTINEL, as_history, before_sentinel, so_far


class Session:
    """A conversation with one model; not for several threads at once."""

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
        self.model, self._template, self._draft, self._depth = model, model.template, draft, Depth()
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

    # --- what goes in -------------------------------------------------------------------------------------------

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

    # --- what comes out -----------------------------------------------------------------------------------------

    def ask(
        self,
        question: str = "",
        *,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        commit: bool = True,
        plugin: Choice = None,
        **sampling: Any,
    ) -> Iterator[Event]:
        """Ends the user's turn with `question` and streams the answer: `Token`s, then one `Done`.

        `sampling` takes the fields of `SamplingParams` (temperature, top_k, ..., seed); what is not given is as the
        checkpoint recommends (`model.generation`), greedy where it says nothing. With `commit=False` the
        answer comes from a fork: neither the question nor the answer enters this session. Closing the iterator
        cancels the answer; the session then stands after the last token that was given out.

        `plugin` is for this question and its answer only ({}: the base alone); the session goes on with its own. The
        past stays as it was read, unless the chat template rewrites it and it has to be read again.
        """
        if max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}.", "An answer has at least one token.")
        stops = [*self.model.generation.stop, *([stop] if isinstance(stop, str) else stop)]
        params, stream = replace(self.model.generation.sampling, **sampling), TextStream(stops)
        session = self if commit else self.fork()
        feed = self._now.feed if plugin is None else self._routed(plugin)
        return session._answer(question, max_tokens, params, stream, feed.route)

    def _answer(
        self, question: str, max_tokens: int, params: SamplingParams, stream: TextStream, route: Blend | None
    ) -> Iterator[Event]:
        before = self._now
        try:
            self._now = replace(before, feed=before.feed.under(route))
            self._settle()
        except BaseException:
            self._now = before
            raise
        content = [*self._now.open_turn, *([{"type": "text", "text": question}] if question else [])]
        if not content:
            self._now = before
            raise UsageError("There is nothing to answer.", hint="Ask a question or push something first.")
        plain = all(part["type"] == "text" for part in content)
        message = {"role": "user", "content": "".join(part["text"] for part in content) if plain else content}
        try:
            self._feed_parts(self._continuation([message], generation=False), [])
            asked = self._now
            self._feed_parts(self._continuation([message], generation=True), [], cached=False)
        except BaseException:
            self._now = before
            raise
        prompt = self._now
        answer = Answer(prompt, Sampler(params, vocab_size=self.model.tokenizer.vocab_size), stream, self._depth)
        try:
            yield from answer.tokens(max_tokens)
        finally:
            self._finish(asked, prompt, message, answer)
            self._now = replace(self._now, feed=replace(self._now.feed, route=before.feed.route))
        yield answer.done()

    def _finish(self, asked: Snapshot, prompt: Snapshot, message: dict[str, Any], answer: Answer) -> None:
        reply = {"role": "assistant", "content": answer.text}
        now = replace(
            prompt,
            feed=answer.feed,
            messages=(*prompt.messages, message, reply),
            open_turn=(),
            repeat=Repeat(),
            fed=(*prompt.fed, *self._template.reply(answer.text)),
            ids=(*prompt.ids, *answer.said)[-RECENT:],
            sampler=answer.sampler.state(),
            new_tokens=0,
            new_media_tokens=0,
            new_cached_tokens=0,
            new_misses=(),
            new_seconds=0.0,
        )
        self._now = as_history(now, asked, self._template)
        if self.model.cache is not None:
            self.model.cache.keep(self._now.feed)

    # --- memory as a value --------------------------------------------------------------------------------------

    @property
    def messages(self) -> tuple[dict[str, Any], ...]:
        """The finished turns."""
        return self._now.messages

    @property
    def position(self) -> int:
        """Tokens in the session's memory."""
        return self._now.feed.position

    @property
    def plugin(self) -> dict[str, float]:
        """The plugins that act, by name with their weights; {} for the base alone."""
        route = self._now.feed.route
        return {} if route is None else route.choice

    def use(self, plugin: Choice) -> None:
        """Goes on with another plugin or blend (None: the base alone); the past stays as it was read. Raises
        `UnsupportedError` for a state plugin after the first token: it says how a session begins."""
        self._now = replace(self._now, feed=self._routed(plugin or {}))

    def _routed(self, plugin: Choice) -> Feed:
        return self._now.feed.under(self.model.plugins.route(plugin, beside=self._now.feed.route))

    def nbytes(self, kind: str = "all") -> int:
        """Bytes of the decoder state: "recurrent", "tape" or "all"."""
        return self._now.feed.state.nbytes(kind)

    def snapshot(self) -> Snapshot:
        """The memory as it is now; cheap, and valid for as long as it is kept."""
        return self._now

    def restore(self, snapshot: Snapshot) -> None:
        """Goes back (or over) to a snapshot of the same model."""
        if snapshot.feed.model is not self.model:
            raise UsageError("The snapshot belongs to another model.")
        self._now = snapshot

    def fork(self) -> Session:
        """An independent session with the same past."""
        other = object.__new__(Session)
        other.__dict__.update(self.__dict__, _depth=copy.deepcopy(self._depth))
        return other

    def save(self, path: str | Path) -> None:
        """Writes the whole memory to a file, atomically."""
        self._settle()
        saved.save(self._now, Path(path))

    @classmethod
    def load(cls, model: Model, path: str | Path, draft: Draft | None = None, tenant: str = "") -> Session:
        """A saved session, in any process; raises `IntegrityError` for a damaged file, another model, or a plugin that
        is not loaded. A draft is not saved: it begins with the recent tokens."""
        session = cls(model, draft=draft, tenant=tenant)
        now = saved.load(model, Path(path))
        draft = None if draft is None else draft.observe(Seen(now.ids, route=now.feed.route))
        session._now = replace(now, feed=replace(now.feed, draft=draft, tenant=tenant))
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._now = Snapshot(Feed.start(self.model, draft=self._draft))
