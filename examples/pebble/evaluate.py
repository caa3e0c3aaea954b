"""Held-out accuracy: fresh seeds, full difficulty, one question per sample, greedy answers compared exactly.

    python -m examples.pebble.evaluate models/pebble/delta --pictures 400 --json out.json

The published weights are evaluated as they load, in fp32, or stored as `--quant` says.

Training draws from seeds [n, 2, step]; evaluation from [seed, 3, ...], which training never sees.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn

from examples.pebble.batches import Row, collate, row
from examples.pebble.model import Pebble
from examples.pebble.tokens import END
from examples.pebble.world import IMAGE_TASKS, VIDEO_TASKS, Sample, image_sample, text_sample, video_sample
from fluvial.adapters.lora import Route
from fluvial.engine.model import Model, load_model

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


TEXTS = (("recall", 400), ("passkey", 1500), ("copy", 100))  # (task, characters); 1.5 characters make a token


@torch.no_grad()
def accuracy(
    model: Pebble,
    tokenizer: Tokenizer,
    seed: int,
    pictures: int = 100,
    texts: Iterable[tuple[str, int]] = TEXTS,
    progress: Callable[[str, float], None] = lambda task, share: None,
) -> dict[str, float]:
    """Share of answers that are exactly right, by task."""
    result = {}
    for task, group in samples(seed, pictures, texts).items():
        right = 0
        together = 4 if "@" in task and int(task.partition("@")[2]) > 5000 else 20
        for start in range(0, len(group), together):
            part = group[start : start + together]
            right += sum(a == s.qa[0].answer for a, s in zip(answers(model, tokenizer, part), part, strict=True))
        result[task] = round(right / len(group), 4)
        progress(task, result[task])
    return result


def answers(model: Pebble, tokenizer: Tokenizer, group: list[Sample], route: Route | None = None) -> list[str]:
    """Greedy answers to each sample's first question, as one ragged batch; `route` names plugins."""
    rows = [row(tokenizer, sample) for sample in group]
    prompts = [Row(r.ids[: r.answer.index(True)], [], r.pictures, r.merges) for r in rows]
    lengths = [len(p.ids) for p in prompts]
    batch = collate([Row(p.ids, [False] * len(p.ids), p.pictures, p.merges) for p in prompts])
    with torch.autocast("cpu", torch.bfloat16, enabled=model.training):
        hidden, state = model.decoder(model.embed(batch), lengths=lengths, route=route)
        at = torch.tensor(lengths) - 1
        token = model.decoder.logits(hidden[torch.arange(len(rows)), at], route).argmax(-1)
        written = [token]
        while len(written) < LONGEST and not all(
            END in column for column in zip(*[t.tolist() for t in written], strict=True)
        ):
            hidden, state = model.decoder(model.decoder.embed(token[:, None], route), state, route=route)
            token = model.decoder.logits(hidden[:, -1], route).argmax(-1)
            written.append(token)
    texts = []
    for column in torch.stack(written, 1).tolist():
        texts.append(tokenizer.decode(column[: column.index(END)] if END in column else column))
    return texts


def published(folder: Path, quant: str | None = None) -> tuple[Pebble, Tokenizer]:
    """A published variant as it loads for everyone, with its tokenizer."""
    return wrapped(load_model(folder, quant=quant)), Tokenizer.from_file(str(folder / "tokenizer.json"))


def wrapped(loaded: Model) -> Pebble:
    """A loaded variant as training sees it; they share the weights."""
    model = object.__new__(Pebble)
    nn.Module.__init__(model)
    model.decoder, model.vision = loaded.decoder, loaded.tower
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=400, help="samples per image and video task; texts a quarter")
    parser.add_argument("--quant", metavar="RECIPE", help="int8, int4, int4-a8 ...")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    texts = (("recall", 400), ("copy", 100), *(("passkey", int(1.5 * 1024 * k)) for k in (0.25, 1, 4, 16)))
    model, tokenizer = published(args.folder, args.quant)

    def show(task: str, share: float) -> None:
        print(f"{task:20s} {share:.3f}", flush=True)

    result = accuracy(model, tokenizer, args.seed, args.pictures, texts, show)
    if args.json:
        about = {"folder": str(args.folder), "seed": args.seed, "pictures": args.pictures, "accuracy": result}
        args.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
