"""Samples of the world as padded batches: token ids, slots for media embeddings, and which tokens are answers.

Letters: B rows, T tokens, P pictures (pairs of frames), L tokens per picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from examples.pebble.tokens import ASSISTANT, END, FRAME, IMAGE, PAD, USER
from examples.pebble.world import QA, Sample, chat_sample, image_sample, text_sample, video_sample

IMAGE_TOKENS, VIDEO_TOKENS = 64, 16
MEDIA = -1  # the id that marks a media slot


@dataclass
class Row:
    """One conversation: ids with `MEDIA` slots, answer flags, and its pictures uint8 [P, 2, H, W, 3]."""

    ids: list[int]
    answer: list[bool]
    pictures: np.ndarray | None = None
    merges: int = 0


@dataclass
class Batch:
    """ids int64 [B, T] (`MEDIA` in media slots), target mask [B, T], pictures per kind in row order."""

    ids: Tensor
    answer: Tensor
    images: Tensor | None  # uint8 [P, 2, H, W, 3], 64 tokens each
    videos: Tensor | None  # uint8 [P, 2, H, W, 3], 16 tokens each
    video_rows: Tensor  # bool [B]


def row(tokenizer: Tokenizer, sample: Sample | list[QA]) -> Row:
    """A sample with its questions as one conversation."""
    ids, answer, pictures, merges = [USER], [False], None, 0
    turns = sample if isinstance(sample, list) else sample.qa
    lead = ""
    if isinstance(sample, Sample) and sample.image is not None:
        pictures = np.stack([sample.image, sample.image])[None]
        ids += [IMAGE] + [MEDIA] * IMAGE_TOKENS
    elif isinstance(sample, Sample) and sample.frames is not None:
        pictures, merges = sample.frames.reshape(-1, 2, *sample.frames.shape[1:]), 1
        ids += ([FRAME] + [MEDIA] * VIDEO_TOKENS) * len(pictures)
    elif isinstance(sample, Sample) and sample.text:
        lead = sample.text + "\n"
    answer += [False] * (len(ids) - 1)
    for i, qa in enumerate(turns):
        question = tokenizer.encode((lead if i == 0 else "") + qa.question).ids
        reply = [*tokenizer.encode(qa.answer).ids, END]
        start = [] if i == 0 else [USER]
        ids += [*start, *question, ASSISTANT, *reply]
        answer += [False] * (len(start) + len(question) + 1) + [True] * len(reply)
    return Row(ids, answer, pictures, merges)


def collate(rows: list[Row]) -> Batch:
    """Pads rows at the end."""
    longest = max(len(r.ids) for r in rows)
    ids = torch.full((len(rows), longest), PAD)
    answer = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, r in enumerate(rows):
        ids[i, : len(r.ids)] = torch.tensor(r.ids)
        answer[i, : len(r.ids)] = torch.tensor(r.answer)
    images = [r.pictures for r in rows if r.pictures is not None and r.merges == 0]
    videos = [r.pictures for r in rows if r.pictures is not None and r.merges == 1]
    return Batch(
        ids,
        answer,
        torch.from_numpy(np.concatenate(images)) if images else None,
        torch.from_numpy(np.concatenate(videos)) if videos else None,
        torch.tensor([r.merges == 1 for r in rows]),
    )


def media_batch(rng: np.random.Generator, tokenizer: Tokenizer, level: float, images: int, videos: int) -> Batch:
    """Images with up to 9 questions and videos with up to 3, at difficulties up to `level`."""
    rows = [row(tokenizer, image_sample(rng, _level(rng, level), 9)) for _ in range(images)]
    for _ in range(videos):
        frames = int(rng.choice([8, 8, 8, 12] if level > 0.5 else [8]))
        rows.append(row(tokenizer, video_sample(rng, _level(rng, level), 5, frames=frames)))
    return collate(rows)


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
