"""Trains a draft head (`models/ahead.py`) for a published pebble on what the model itself would say, in CPU minutes.

    python -m examples.drafts.train models/pebble/delta --minutes 4

The model is frozen. It reads the training world once (seeds [seed, 2, step], never the held-out ones); at each answer
token the head is taught the model's own distributions over the `DEPTH` tokens after the next one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from examples.pebble.evaluate import published
from examples.pebble.mixture import media_batch, text_batch, text_length
from examples.pebble.model import Pebble
from fluvial.models.ahead import Ahead
from fluvial.models.decoder import Decoder

DEPTH = 4  # guesses in a row
READING = 0.6  # share of the time in which the model reads
ROWS = 1024  # answer tokens a step


class Positions:
    """Answer tokens with what follows: `hidden` of tokens t .. t + DEPTH, `ids` of t + 1 .. t + DEPTH, -1 behind the
    answer."""

    def __init__(self) -> None:
        self._hidden: list[Tensor] = []
        self._ids: list[Tensor] = []

    def add(self, hidden: Tensor, ids: Tensor, answer: Tensor) -> None:
        """hidden [B, T, D]; ids and answer flags [B, T]; tokens before an answer's are where its draft begins."""
        tokens = hidden.shape[1]
        rows, at = torch.nonzero(answer[:, 1 : tokens - DEPTH], as_tuple=True)
        span = at[:, None] + torch.arange(DEPTH + 1)
        self._hidden.append(hidden[rows[:, None], span].to(torch.bfloat16))
        self._ids.append(torch.where(answer, ids, -1)[rows[:, None], span[:, 1:]])

    def whole(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self._hidden), torch.cat(self._ids)


@torch.no_grad()
def read(model: Pebble, tokenizer: Tokenizer, seed: int, seconds: float) -> tuple[Tensor, Tensor]:
    """Hidden states bf16 [N, DEPTH + 1, D] and ids [N, DEPTH] (-1 behind an answer) from the training world."""
    positions, began, step = Positions(), time.process_time(), 0
    while time.process_time() - began < seconds:
        rng = np.random.default_rng([seed, 2, step])
        batches = [media_batch(rng, tokenizer, 1.0, 8, 2)]
        batches += [text_batch(rng, tokenizer, 1.0, 1024, text_length(rng, 1.0))] if step % 3 == 0 else []
        for batch in batches:
            hidden, _ = model.decoder(model.embed(batch))
            positions.add(hidden, batch.ids, batch.answer)
        step += 1
    return positions.whole()


def losses(head: Ahead, decoder: Decoder, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy with the model's own distributions at each depth, and the share of guesses [DEPTH] that are
    its likeliest token."""
    h, total, right = hidden[:, 0].float(), torch.zeros(()), []
    for i in range(DEPTH):
        real = ids[:, i] >= 0
        h = head(h, decoder.embed(ids[:, i].clamp(min=0)[:, None])[:, 0])
        with torch.no_grad():
            taught = decoder.logits(hidden[:, i + 1].float()).softmax(-1)
        guessed = decoder.logits(h)
        total = total + F.cross_entropy(guessed[real], taught[real]) * 0.8**i
        right.append((guessed.argmax(-1) == taught.argmax(-1))[real].float().mean())
    return total, torch.stack(right)


def fit(head: Ahead, decoder: Decoder, hidden: Tensor, ids: Tensor, seconds: float) -> None:
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.05)
    began, step = time.process_time(), 0
    while (progress := (time.process_time() - began) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * (1 - 0.97 * progress)
        rows = torch.randint(len(ids), (ROWS,))
        total, right = losses(head, decoder, hidden[rows], ids[rows])
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} loss {total.item():.3f} right {' '.join(f'{x:.2f}' for x in right)}", flush=True)
        step += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a published pebble; the head is written beside its weights")
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--seed", type=int, default=31)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    model, tokenizer = published(args.folder)
    model.requires_grad_(False)
    hidden, ids = read(model, tokenizer, args.seed, 60 * args.minutes * READING)
    print(f"{len(ids)} answer tokens")
    head = Ahead(model.decoder.config.d_model, args.width)
    fit(head, model.decoder, hidden, ids, 60 * args.minutes * (1 - READING))
    head.save(args.folder)


if __name__ == "__main__":
    main()
