"""`Session`: one conversation. Push text, images, video and frames as they come; ask; go on. Each turn feeds only
what is new.

Everything that a session remembers is a value (`Feed`, messages, what was fed), so a fork or a snapshot is a
shallow copy and an answer that is cancelled leaves the session at its last committed token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from fluvial.adapters import pages
from fluvial.adapters.errors import UsageError
from fluvial.engine import saved
from fluvial.engine.answer import Answer
from fluvial.engine.draft import Draft
from fluvial.engine.events import Event
from fluvial.engine.feed import Feed
from fluvial.engine.intake import Intake
from fluvial.engine.model import Model
from fluvial.engine.plugins import Blend, Choice
from fluvial.engine.sampling import Sampler, SamplingParams
from fluvial.engine.snapshot import RECENT, Repeat, Snapshot
from fluvial.engine.text_stream import TextStream
from fluvial.engine.turns import as_history


class Session(Intake):
    """A conversation with one model; not for several threads at once."""

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
        own = self._now.feed.route
        asked, prompt, message = self._read_question(question, route)
        answer = Answer(prompt, Sampler(params, vocab_size=self.model.tokenizer.vocab_size), stream)
        prompt = replace(prompt, feed=asked.feed)  # its memory goes with the first token
        pages.trim()
        try:
            yield from answer.tokens(max_tokens)
        finally:
            self._finish(asked, prompt, message, answer)
            self._now = replace(self._now, feed=replace(self._now.feed, route=own))
        yield answer.done()

    def _read_question(self, question: str, route: Blend | None) -> tuple[Snapshot, Snapshot, dict[str, Any]]:
        """Ends the user's turn, where the session then stands: that memory, the one behind the generation prompt, and
        the turn's message. Nobody keeps the memory from before here, as large as it may be."""
        before = self._now
        try:
            self._now = replace(before, feed=before.feed.under(route))
            self._settle()
            content = [*self._now.open_turn, *([{"type": "text", "text": question}] if question else [])]
            if not content:
                raise UsageError("There is nothing to answer.", hint="Ask a question or push something first.")
            plain = all(part["type"] == "text" for part in content)
            message = {"role": "user", "content": "".join(part["text"] for part in content) if plain else content}
            self._feed_parts(self._continuation([message], generation=False), [])
            asked = self._now
            self._feed_parts(self._continuation([message], generation=True), [], cached=False)
        except BaseException:
            self._now = before
            raise
        prompt, self._now = self._now, asked
        return asked, prompt, message

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
        other.__dict__.update(self.__dict__)
        return other

    def save(self, path: str | Path) -> None:
        """Writes the whole memory to a file, atomically."""
        self._settle()
        saved.save(self._now, Path(path))

    @classmethod
    def load(cls, model: Model, path: str | Path, draft: Draft | None = None, tenant: str = "") -> Session:
        """A saved session, in any process; raises `IntegrityError` for a damaged file, another model, or a plugin that
        is not loaded. It goes on as if it had never been saved: with its draft, if it had one of the same kind, and in
        the cache, from the history that it shares with others where the cache still holds it."""
        session = cls(model, draft=draft, tenant=tenant)
        session._now = saved.load(model, Path(path), draft, tenant)
        return session

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._now = Snapshot(Feed.start(self.model, draft=self._draft))
