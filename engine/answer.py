"""`Answer`: the generation loop, one token at a time, so that it can be cancelled anywhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from fluvial.engine.depth import Depth
from fluvial.engine.events import Done, Token, Usage
from fluvial.engine.feed import Feed
from fluvial.engine.sampling import Sampler
from fluvial.engine.snapshot import Snapshot
from fluvial.engine.speculation import Decoding
from fluvial.engine.text_stream import TextStream


class Answer:
    """One answer to the prompt that `prompt` stands behind, whose memory it does not keep.

    While `tokens` runs, `text` was given out. After it, `said` are the token ids in memory and `feed` stands behind
    them. Both always agree: where a stop string or a cancel cuts the text, memory goes back to exactly the text that
    was given out.
    """

    feed: Feed

    def __init__(self, prompt: Snapshot, sampler: Sampler, stream: TextStream) -> None:
        self.sampler, self._stream = sampler, stream
        if sampler.params.seed is None and prompt.sampler is not None:
            sampler.load_state(prompt.sampler)
        self.said, self.text, self.reason = list[int](), "", "length"
        self._written, self._seconds = 0, 0.0
        self._model = model = prompt.feed.model
        draft = prompt.feed.draft
        model.decoder.expect(1, 1, journal=False)
        depth = Depth() if draft is None else model.depths.of(draft.name, prompt.feed.route)
        self._usage = partial(
            Usage,
            prompt_tokens=prompt.new_tokens,
            media_tokens=prompt.new_media_tokens,
            prompt_seconds=prompt.new_seconds,
            cached_tokens=prompt.new_cached_tokens,
            cache_misses=prompt.new_misses,
        )
        self._decoding = Decoding(prompt.feed, sampler, depth, list(prompt.ids), model.tokenizer.eos_ids)

    def tokens(self, most: int) -> Iterator[Token]:
        """At most `most` tokens as they come; closing the iterator cancels the answer."""
        began, tokenizer, stream = time.perf_counter(), self._model.tokenizer, self._stream
        decoding, finished = self._decoding, False
        whole = (decoding.mark(), 0, 0)  # where all text had been given out: feed, tokens, characters
        try:
            while self._written < most:
                id = decoding.choose()
                if id in tokenizer.eos_ids:
                    self.reason = "end"
                    break
                self._written += 1
                piece = stream.push(tokenizer.token_bytes(id, first=self._written == 1))
                self.text += piece
                if stream.stopped is not None:
                    self.reason = "stop"
                    yield Token(piece, id)
                    return
                decoding.take(id, most - self._written)
                self.said.append(id)
                if not stream.holding:
                    whole = (decoding.mark(), len(self.said), len(self.text))
                yield Token(piece, id)
            if tail := stream.finish():
                self.text += tail
                yield Token(tail, -1)
            finished = True
        finally:
            if finished:
                self.feed = decoding.leave()
            else:  # stopped or cancelled
                rest = tokenizer.encode(self.text[whole[2] :], special=False, first=False)
                self.feed, self.said = whole[0]().ids(rest), [*self.said[: whole[1]], *rest]
            self._seconds = time.perf_counter() - began

    def done(self) -> Done:
        """The closing event."""
        usage = self._usage(
            completion_tokens=self._written,
            completion_seconds=self._seconds,
            state_bytes=self.feed.state.nbytes("recurrent"),
            tape_bytes=self.feed.state.nbytes("tape"),
            position=self.feed.position,
            forwards=self._decoding.forwards,
            drafted_tokens=self._decoding.drafted,
            accepted_tokens=self._decoding.accepted,
            draft="none" if self.feed.draft is None else self.feed.draft.name,
        )
        return Done(self.text, self.reason, usage)
