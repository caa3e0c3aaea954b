"""What a session reads at once, runs of ids and media in order; with a cache, from the furthest state that it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fluvial.adapters import pages
from fluvial.adapters.errors import UsageError
from fluvial.engine.feed import Feed
from fluvial.engine.media import Encoding, Medium, medium_of
from fluvial.engine.stretch import Stretch
from fluvial.engine.template import MEDIA, Message, Part, Text, before_media, encode_parts, merged
from fluvial.models.tape import Tape

Progress = Callable[[int], None]  # called with the number of pictures seen so far
NEAR, FAR = 64, 256  # tokens: the last states in front of the end of a text, the first behind its beginning


@dataclass(frozen=True)
class Piece:
    """A run of ids, or a medium with the token that stays in front of each of its steps."""

    ids: tuple[int, ...] = ()
    medium: Encoding | None = None
    marker: tuple[int, ...] = ()

    @property
    def symbols(self) -> tuple[int | str, ...]:
        return self.ids if self.medium is None else (self.medium.symbol,)

    def stretches(self, encode: Callable[..., list[int]], progress: Progress | None) -> Iterator[Stretch]:
        """As the decoder reads it; `progress` hears of the pictures that were taken."""
        if self.medium is None:
            yield Stretch(self.ids)
            return
        seen = 0
        for x, layout in self.medium.steps():
            lead = encode(layout.lead, special=False, first=False)
            before, after = (encode("".join(t), special=True, first=False) for t in (layout.before, layout.after))
            yield Stretch((*self.marker, *lead, *before))
            yield Stretch(x=x, positions=layout.positions)
            yield Stretch(tuple(after))
            if progress is not None and self.medium.frames != seen:
                seen = self.medium.frames
                progress(seen)


@dataclass
class Reading:
    """`feed` after what was read; `cached_tokens` of it were not computed. `misses`: why the others were."""

    feed: Feed
    media_tokens: int = 0
    cached_tokens: int = 0
    misses: list[str] = field(default_factory=list)


def pieces_of(parts: Iterable[Part], media: Iterable[Encoding], tail: str, feed: Feed) -> tuple[list[Piece], str]:
    """The pieces of a chat's parts, and the text behind the last medium that waits for what follows."""
    model, queue, pieces, first = feed.model, iter(media), list[Piece](), feed.position == 0
    for words, place in before_media(parts):
        medium = None if place is None else next(queue)
        lead = "" if medium is None else medium.lead
        for run in encode_parts(merged([Text(tail), *words, Text(lead)]), model.tokenizer, first=first):
            assert isinstance(run, list)
            pieces.append(Piece(tuple(run)))
            first = False
        tail = ""
        if place is not None and medium is not None:
            marker = model.tokenizer.id(place.text) if model.processor.keep_token else None
            pieces.append(Piece((), medium, () if marker is None else (marker,)))
            tail, first = medium.after, False
    return pieces, tail


def opened(
    messages: Iterable[Message], encode: Callable[[Medium], Encoding]
) -> tuple[list[dict[str, Any]], list[Encoding]]:
    """Messages with media in place, {"type": "image", "image": Image(...)}: as the template takes them, and the media.
    Errors: UsageError if the last one is the user's or a medium is missing."""
    said, media = list[dict[str, Any]](), list[Encoding]()
    for message in messages:
        content = message.get("content")
        if isinstance(content, list | tuple):
            content = list(content)
            for at, part in enumerate(content):
                if isinstance(part, Mapping) and part.get("type") in MEDIA:
                    media.append(encode(medium_of(part.get(part["type"]))))
                    content[at] = media[-1].part
        said.append({**message, "content": content})
    if said and said[-1].get("role") == "user":
        raise UsageError("The last of the messages is the user's.", "They are what was said before.", "Ask it.")
    return said, media


def read(feed: Feed, pieces: list[Piece], progress: Progress | None = None, *, cached: bool = True) -> Reading:
    """Reads the pieces. With a cache, what it knows is skipped and states are kept: behind media, where chains part, at
    log-spaced distances, and at the end; behind live frames at log-spaced distances alone."""
    pages.trim()
    cache, at = feed.model.cache if cached else None, 0
    if cache is not None and feed.position == 0:
        feed = cache.start(feed)
    if feed.chain is None:
        return _straight(feed, pieces, progress)
    live = any(piece.medium is not None and piece.medium.live for piece in pieces)
    reading, done, branch = Reading(feed), 0, 0
    if cache is not None and (symbols := [symbol for piece in pieces for symbol in piece.symbols]):
        hit = cache.find(feed, symbols)
        reading.feed, done, branch = hit.feed, hit.count, hit.shared
        reading.cached_tokens = hit.feed.position - feed.position
        reading.misses += [hit.why] if hit.why else []
    for piece in pieces:
        behind = at + len(piece.symbols)
        if piece.medium is not None:
            _look(reading, piece, progress, skip=behind <= done)
            if cache is not None and not piece.medium.live and behind > done:
                cache.keep(reading.feed)
        elif behind > done:
            ids = piece.ids[max(0, done - at) :]
            stops = () if cache is None else _stops(reading.feed, len(ids), branch - max(at, done))
            for start, stop in pairwise((0, *stops, len(ids))):
                reading.feed = reading.feed.ids(ids[start:stop])
                if cache is not None and stop < len(ids):
                    cache.keep(reading.feed, lasting=behind - len(ids) + stop == branch)
        at = behind
    if cache is not None and at > done and (not live or _passes(feed.position, reading.feed.position)):
        cache.keep(reading.feed)
    return reading


def _straight(feed: Feed, pieces: list[Piece], progress: Progress | None) -> Reading:
    """All pieces, without account of what was read: they share forwards."""
    encode = feed.model.tokenizer.encode
    feed = feed.read(stretch for piece in pieces for stretch in piece.stretches(encode, progress))
    return Reading(feed, sum(piece.medium.tokens for piece in pieces if piece.medium is not None))


def _look(reading: Reading, piece: Piece, progress: Progress | None, *, skip: bool) -> None:
    medium, before = piece.medium, reading.feed
    assert medium is not None
    if skip:
        medium.skip()
    else:
        inner = before.read(piece.stretches(before.model.tokenizer.encode, progress))
        reading.feed = before.behind(inner, (medium.symbol,))
    reading.media_tokens += medium.tokens


def _passes(before: int, after: int) -> bool:
    """Whether a log-spaced position lies on the way."""
    return any(before < FAR * 2**n <= after for n in range(32))


def _stops(feed: Feed, count: int, branch: int) -> list[int]:
    """Where to keep states in a run of `count` ids: at the branch, and ever more sparsely from its end and from the
    beginning of all. Where all memory is rows, any place can be had without."""
    if all(isinstance(leaf, Tape) for leaf in feed.state.leaves.values()):
        return []
    wanted = {count - NEAR * 2**n for n in range(32)} | {FAR * 2**n - feed.position for n in range(32)}
    stops: list[int] = [branch] if 0 < branch < count else []
    for stop in sorted(wanted):
        if all(abs(stop - other) >= NEAR for other in (0, count, *stops)) and 0 < stop < count:
            stops.append(stop)
    return sorted(stops)
