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
from examples.pebble.world import QA, Sample

IMAGE_TOKENS, VIDEO_TOKENS = 64, 16
MEDIA = -1  # the id that marks a media slot


@dataclass
class Row:
    """One conversation: ids with `MEDIA` slots, answer flags, and its pictures uint8 [P, 2, H, W, 3]. `shown` is the
    order in which a video shows them, where some come again; `idle` tokens bring nothing worth remembering."""

    ids: list[int]
    answer: list[bool]
    pictures: np.ndarray | None = None
    merges: int = 0
    shown: list[int] | None = None
    idle: list[bool] | None = None


@dataclass
class Batch:
    """ids int64 [B, T] (`MEDIA` in media slots), target mask [B, T], pictures per kind in row order."""

    ids: Tensor
    answer: Tensor
    images: Tensor | None  # uint8 [P, 2, H, W, 3], 64 tokens each
    videos: Tensor | None  # uint8 [P, 2, H, W, 3], 16 tokens each
    video_rows: Tensor  # bool [B]
    shown: Tensor | None = None  # int64: which of `videos` each of the clips' places shows
    idle: Tensor | None = None  # bool [B, T]


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
    idle = torch.zeros(len(rows), longest, dtype=torch.bool)
    shown: list[int] = []
    pairs = 0
    for i, r in enumerate(rows):
        ids[i, : len(r.ids)] = torch.tensor(r.ids)
        answer[i, : len(r.ids)] = torch.tensor(r.answer)
        if r.idle is not None:
            idle[i, : len(r.idle)] = torch.tensor(r.idle)
        if r.pictures is not None and r.merges == 1:
            shown += [pairs + n for n in (range(len(r.pictures)) if r.shown is None else r.shown)]
            pairs += len(r.pictures)
    images = [r.pictures for r in rows if r.pictures is not None and r.merges == 0]
    videos = [r.pictures for r in rows if r.pictures is not None and r.merges == 1]
    return Batch(
        ids,
        answer,
        torch.from_numpy(np.concatenate(images)) if images else None,
        torch.from_numpy(np.concatenate(videos)) if videos else None,
        torch.tensor([r.merges == 1 for r in rows]),
        torch.tensor(shown) if len(shown) > pairs else None,
        idle if idle.any() else None,
    )
