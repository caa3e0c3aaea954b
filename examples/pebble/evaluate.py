"""Held-out accuracy: fresh seeds, full difficulty, one question per sample, greedy answers compared exactly.

    python -m examples.pebble.evaluate models/pebble/delta --pictures 400 --json out.json

Training draws from seeds [n, 2, step]; evaluation from [seed, 3, ...], which training never sees.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch
from tokenizers import Tokenizer

from examples.pebble.batches import Row, collate, row
from examples.pebble.model import Pebble
from examples.pebble.tokens import END
from examples.pebble.world import IMAGE_TASKS, VIDEO_TASKS, Sample, image_sample, text_sample, video_sample

LONGEST = 96  # answer tokens


def samples(seed: int, pictures: int, texts: Iterable[tuple[str, int]]) -> dict[str, list[Sample]]:
    """One-question samples by task name; `texts` lists (task, characters)."""
    cases: dict[str, list[Sample]] = defaultdict(list)
    for number, task in enumerate(IMAGE_TASKS):
        rng = np.random.default_rng([seed, 3, number])
        cases[task] = [image_sample(rng, 1.0, 1, tasks=[task]) for _ in range(pictures)]
    for number, task in enumerate(VIDEO_TASKS):
        rng = np.random.default_rng([seed, 4, number])
        cases[task] = [video_sample(rng, 1.0, 1, tasks=[task]) for _ in range(pictures)]
    for number, (task, length) in enumerate(texts):
        rng = np.random.default_rng([seed, 5, number])
        cases[f"{task}@{length}"] = [text_sample(rng, 1.0, length, tasks=[task]) for _ in range(max(8, pictures // 4))]
    for group in cases.values():
        for sample in group:
            sample.qa = sample.qa[:1]
    return cases


@torch.no_grad()
def accuracy(model: Pebble, tokenizer: Tokenizer, seed: int, pictures: int = 100) -> dict[str, float]:
    """Share of answers that are exactly right, by task."""
    texts = (("recall", 400), ("passkey", 1500), ("copy", 100))
    result = {}
    for task, group in samples(seed, pictures, texts).items():
        right = 0
        for start in range(0, len(group), 20):
            part = group[start : start + 20]
            right += sum(a == s.qa[0].answer for a, s in zip(answers(model, tokenizer, part), part, strict=True))
        result[task] = round(right / len(group), 4)
    return result


def answers(model: Pebble, tokenizer: Tokenizer, group: list[Sample]) -> list[str]:
    """Greedy answers to each sample's first question, as one ragged batch."""
    rows = [row(tokenizer, sample) for sample in group]
    prompts = [Row(r.ids[: r.answer.index(True)], [], r.pictures, r.merges) for r in rows]
    lengths = [len(p.ids) for p in prompts]
    batch = collate([Row(p.ids, [False] * len(p.ids), p.pictures, p.merges) for p in prompts])
    with torch.autocast("cpu", torch.bfloat16):
        hidden, state = model.decoder(model.embed(batch), lengths=lengths)
        at = torch.tensor(lengths) - 1
        token = model.decoder.logits(hidden[torch.arange(len(rows)), at]).argmax(-1)
        written = [token]
        while len(written) < LONGEST and not all(
            END in column for column in zip(*[t.tolist() for t in written], strict=True)
        ):
            hidden, state = model.decoder(model.decoder.embed(token[:, None]), state)
            token = model.decoder.logits(hidden[:, -1]).argmax(-1)
            written.append(token)
    texts = []
    for column in torch.stack(written, 1).tolist():
        texts.append(tokenizer.decode(column[: column.index(END)] if END in column else column))
    return texts
