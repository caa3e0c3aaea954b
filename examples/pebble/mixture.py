"""What a training step is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from examples.pebble.batches import Batch, collate, row
from examples.pebble.memory import idle_batch
from examples.pebble.world import chat_sample, image_sample, text_sample, video_sample

TURNS = ("media", "still", "text", "events", "media", "filler")


@dataclass
class Sizes:
    """Of a step's batches: images and videos, tokens of text; then what is for its own weakness: clips of print alone,
    videos of what comes first and last, tokens of rows where nearly nothing happens."""

    images: int = 12
    videos: int = 4
    text: int = 1536
    clips: int = 0
    events: int = 0
    idle: int = 0


def mixture(
    rng: np.random.Generator, tokenizer: Tokenizer, level: float, sizes: Sizes, step: int, length: int
) -> dict[str, tuple[Batch, float]]:
    """The batches of a step by name, with their weights. With `clips`, all else takes turns, so that every step has
    something to read."""
    makers: dict[str, Callable[[], tuple[Batch, float]]] = {
        "media": lambda: (media_batch(rng, tokenizer, level, sizes.images, sizes.videos), 1.0),
        "text": lambda: (text_batch(rng, tokenizer, level, sizes.text, length), 0.5),
        "still": lambda: (idle_batch(rng, tokenizer, level, sizes.idle, video=True), 0.5),
        "filler": lambda: (idle_batch(rng, tokenizer, level, sizes.idle, video=False), 0.5),
        "events": lambda: (events_batch(rng, tokenizer, level, sizes.events), 0.5),
        "print": lambda: (reading_batch(rng, tokenizer, level, sizes.clips), 1.0),
    }
    names = ("print", TURNS[step % len(TURNS)]) if sizes.clips else ("media", "text")
    return {name: makers[name]() for name in names}


def media_batch(rng: np.random.Generator, tokenizer: Tokenizer, level: float, images: int, videos: int) -> Batch:
    """Images with up to 9 questions and videos with up to 3, at difficulties up to `level`."""
    rows = [row(tokenizer, image_sample(rng, _level(rng, level), 9)) for _ in range(images)]
    for _ in range(videos):
        frames = int(rng.choice([8, 8, 8, 12] if level > 0.5 else [8]))
        rows.append(row(tokenizer, video_sample(rng, _level(rng, level), 5, frames=frames)))
    return collate(rows)


def reading_batch(rng: np.random.Generator, tokenizer: Tokenizer, level: float, clips: int) -> Batch:
    """Print to read and nothing else, so that a step holds many answers: codes in clips of one or two pairs of frames,
    or numbers and words in half as many images."""
    if rng.random() < 0.65:
        frames = [2 if rng.random() < 0.85 else 4 for _ in range(clips)]
        rows = [
            row(tokenizer, video_sample(rng, _level(rng, level), 1, frames=n, tasks=["flash_code"])) for n in frames
        ]
    else:
        tasks = ["number" if rng.random() < 0.7 else "word" for _ in range(clips // 2)]
        rows = [row(tokenizer, image_sample(rng, _level(rng, level), 1, tasks=[task])) for task in tasks]
    return collate(rows)


def events_batch(rng: np.random.Generator, tokenizer: Tokenizer, level: float, videos: int) -> Batch:
    """Videos in which things appear one after the other: what came first, what last, how many."""
    tasks = ["first", "last", "video_count"]
    lengths = [int(n) for n in rng.choice([6, 8, 8, 12], videos)]
    return collate([row(tokenizer, video_sample(rng, _level(rng, level), 5, frames=n, tasks=tasks)) for n in lengths])


def text_length(rng: np.random.Generator, level: float) -> int:
    """Tokens of the next texts: mostly short ones, which hold many more questions a token; up to 2048 at level 1."""
    longest = 160 if rng.random() < 0.7 else 256 if level < 0.3 else 1024 if level < 0.7 else 2048
    return int(2 ** rng.uniform(5, np.log2(longest)))


def text_batch(rng: np.random.Generator, tokenizer: Tokenizer, level: float, tokens: int, length: int) -> Batch:
    """Texts to remember of about `length` tokens, about `tokens` in all, and a chat."""
    count = max(1, tokens // length)
    rows = [row(tokenizer, text_sample(rng, _level(rng, level), int(length * 1.5))) for _ in range(count)]
    if length <= 256:
        rows.append(row(tokenizer, chat_sample(rng)))
    return collate(rows)


def _level(rng: np.random.Generator, level: float) -> float:
    # full difficulty most of the time once it is reached, easier ones mixed in throughout
    return level if rng.random() < 0.6 else float(rng.uniform(0, level))
