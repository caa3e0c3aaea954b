"""What a trained draft head is worth: tokens per forward and acceptance on held-out questions, as chain and as tree.

    python -m examples.drafts.measure models/pebble/delta --count 40

Answers are checked against plain decoding: with the same draws they are the same tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from examples.pebble.batches import Row, collate, row
from examples.pebble.evaluate import LONGEST, published, samples
from examples.pebble.model import Pebble
from examples.pebble.tokens import END
from fluvial.engine.depth import Depth
from fluvial.engine.draft import Context, Draft, Proposal, Seen
from fluvial.engine.drafts import drafting
from fluvial.engine.feed import Feed
from fluvial.engine.model import Model, load_model
from fluvial.engine.sampling import Sampler, SamplingParams
from fluvial.engine.speculation import Decoding
from fluvial.engine.stretch import Stretch

TEXTS = (("copy", 100), ("recall", 400), ("passkey", 1500))
SAMPLING = {"greedy": {}, "sampled, temperature 0.8": {"temperature": 0.8, "seed": 5}}
CHAIN, TREE = 4, 12  # guesses


class Always(Depth):
    """The same number of guesses in every round."""

    def __init__(self, guesses: int) -> None:
        super().__init__()
        self.guesses = guesses

    def plan(self, room: int) -> int:
        return min(self.guesses, room)

    def cut(self, guesses: int, grade: int, chance: float = 1.0) -> int:
        return guesses


@dataclass(frozen=True)
class Chain:
    """Only the likeliest path of another draft's tree."""

    inner: Draft
    name: str = "chain"

    def observe(self, seen: Seen) -> Chain:
        return replace(self, inner=self.inner.observe(seen))

    def propose(self, context: Context, k: int) -> Proposal:
        return self.inner.propose(context, TREE).chain.cut(k)


def prompts(model: Pebble, tokenizer: Tokenizer, seed: int, count: int) -> Iterator[tuple[str, Tensor]]:
    """Task and embeddings [T, D] of held-out questions."""
    for task, group in samples(seed, count, TEXTS).items():
        for sample in group:
            whole = row(tokenizer, sample)
            n = whole.answer.index(True)
            prompt = Row(whole.ids[:n], [False] * n, whole.pictures, whole.merges)
            with torch.no_grad():
                yield task, model.embed(collate([prompt]))[0]


def answered(
    model: Model, x: Tensor, draft: Draft | None, guesses: int, **sampling: float
) -> tuple[list[int], Decoding]:
    decoding = Decoding(
        Feed.start(model, draft=draft).read([Stretch(x=x)]),
        Sampler(SamplingParams(**sampling)),
        Always(guesses),
        [],
        [END],
    )
    ids: list[int] = []
    while len(ids) < LONGEST and (id := decoding.choose()) != END:
        ids.append(id)
        decoding.take(id, LONGEST)
    return ids, decoding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=40, help="questions per task; texts at least 8")
    parser.add_argument("--seed", type=int, default=77, help="of the questions; training never uses [seed, 3..5, task]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, (pebble, tokenizer) = load_model(args.folder), published(args.folder)
    head = drafting("head", model)
    asked = list(prompts(pebble, tokenizer, args.seed, args.count))
    for name, sampling in SAMPLING.items():
        print(f"{name}: {len(asked)} questions; tokens per forward, share of guesses accepted, answers that differ")
        groups = {"all": asked, "5 tokens or more": []}
        plain = {}
        for i, (_, x) in enumerate(asked):
            plain[i] = answered(model, x, None, 0, **sampling)[0]
            if len(plain[i]) >= 5:
                groups["5 tokens or more"].append(asked[i])
        order = {id(x): i for i, (_, x) in enumerate(asked)}
        for group, questions in groups.items():
            for form, draft, guesses in (("chain", Chain(head), CHAIN), ("tree", head, TREE)):
                tokens = forwards = drafted = accepted = differ = 0
                for _, x in questions:
                    ids, decoding = answered(model, x, draft, guesses, **sampling)
                    differ += ids != plain[order[id(x)]]
                    tokens, forwards = tokens + len(ids), forwards + decoding.forwards
                    drafted, accepted = drafted + decoding.drafted, accepted + decoding.accepted
                each, kept = tokens / max(forwards, 1), accepted / max(drafted, 1)
                counts = f"{differ} of {len(questions)}  ({tokens} tokens)"
                print(f"  {group:17} {form} of {guesses:2}: {each:.2f}  {kept:.2f}  {counts}", flush=True)


if __name__ == "__main__":
    main()
