"""`Stretch`: tokens that enter the memory in a row, ids or a medium's embeddings; several share a forward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fluvial.adapters.recording import TOKENS

CHUNK, VALUES = 512, 1 << 20  # tokens fed at once, at most; and values of their embeddings
SMALL = 512  # width of decoders that read their weights sooner than Python calls what a longer forward needs


def chunk_size(d_model: int) -> int:
    """Tokens fed at once to a decoder of that width: what passes between its layers should not outgrow them."""
    return 1 << max(1, min(CHUNK, VALUES // d_model)).bit_length() - 1


@dataclass(frozen=True)
class Stretch:
    """`ids`, or embeddings x [T, D or wider] with their rotary `positions` int64 [3, T], which count from the position
    of the first of them; None where they stand in a row like text."""

    ids: tuple[int, ...] = ()
    x: Tensor | None = None
    positions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids) if self.x is None else len(self.x)


@dataclass(frozen=True)
class Part:
    """Tokens `start` to `end` of a stretch."""

    stretch: Stretch
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def ids(self) -> tuple[int, ...] | None:
        """None for a medium."""
        return self.stretch.ids[self.start : self.end] if self.stretch.x is None else None


def chunks(stretches: Iterable[Stretch], size: int) -> Iterator[list[Part]]:
    """The stretches in runs of `size` tokens and a rest; each is asked for when the run before it is full."""
    chunk, room = list[Part](), size
    for stretch in stretches:
        start = 0
        while start < len(stretch):
            end = min(len(stretch), start + room)
            chunk.append(Part(stretch, start, end))
            room -= end - start
            start = end
            if not room:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk


def short(chunk: list[Part], d_model: int) -> Iterator[list[Part]]:
    """The chunk; in forwards of at most `TOKENS` tokens, one native call each, where it is a little longer, of short
    parts, and the decoder small."""
    if d_model > SMALL or not TOKENS < sum(map(len, chunk)) <= 3 * TOKENS or any(len(part) > TOKENS for part in chunk):
        yield chunk
        return
    group = list[Part]()
    for part in chunk:
        if group and sum(map(len, group)) + len(part) > TOKENS:
            yield group
            group = []
        group.append(part)
    yield group


def joined(xs: list[Tensor]) -> Tensor:
    """Embeddings [T, D or wider] one behind another: [1, T, the widest], with zeros where others are wider."""
    if len(xs) == 1:
        return xs[0][None]
    width = max(x.shape[1] for x in xs)
    return torch.cat([torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in xs])[None]


def placed(chunk: list[Part], start: int, anchor: int) -> tuple[list[Tensor] | None, int]:
    """Where each part of a chunk rotates, int64 [3, 1, T], if its first token stands at `start`; None if all follow one
    another. `anchor`: where the stretch began that the chunk before was cut in; comes back for the next chunk."""
    if all(part.stretch.positions is None for part in chunk):
        return None, start
    places = list[Tensor]()
    for part in chunk:
        given = part.stretch.positions
        if given is None:
            places.append(torch.arange(start, start + len(part)).expand(3, 1, -1))
        else:
            anchor = anchor if part.start else start
            places.append(given[:, None, part.start : part.end] + anchor)
        start = max(start, int(places[-1].max()) + 1)
    return places, anchor
