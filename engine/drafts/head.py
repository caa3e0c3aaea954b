"""A trained head beside the model's weights (`models/ahead.py`), which guesses a tree from the last hidden state.

The tree grows by levels (Li et al. 2024): the `WIDE` likeliest paths so far go on, each with its likeliest tokens; of
all that were looked at, the likeliest stay. Nothing is drawn, so a sampled answer takes the draws of a plain one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fluvial.engine.draft import Context, Packed, Proposal, Seen
from fluvial.engine.drafts._words import Words
from fluvial.engine.model import Model
from fluvial.models.ahead import Ahead

WIDE, EACH, DEEP = 4, 4, 6  # paths that go on, tokens looked at behind each, levels
LEAST = 0.02  # chance of a path below which it is not worth a place


@dataclass(frozen=True)
class HeadDraft:
    """`last` [D]: the hidden state of the newest token; None where it is not known."""

    model: Model
    head: Ahead
    words: Words
    last: Tensor | None = None
    name: str = "head"

    def observe(self, seen: Seen) -> HeadDraft:
        words = self.words if seen.ids is None else self.words.seen(seen.ids)
        return replace(self, words=words, last=None if seen.hidden is None else seen.hidden[-1].clone())

    @torch.no_grad()
    def propose(self, context: Context, k: int) -> Proposal:
        if self.last is None:
            return Proposal()
        decoder, params = self.model.decoder, context.sampler.params
        ends = torch.tensor(sorted(self.model.tokenizer.eos_ids), dtype=torch.long, device=self.last.device)
        hidden, ids, front = self.last[None], torch.tensor([context.history[-1]], device=self.last.device), [-1]
        tokens, parents, chances = list[int](), list[int](), list[float]()  # of the nodes, level by level
        for _ in range(min(k, DEEP)):
            hidden = self.head(hidden, decoder.embed(ids[None], context.route)[0])
            logits = self.words.logits(decoder, hidden, context.route) / (params.temperature or 1.0)
            found, words = logits.softmax(-1).index_fill(-1, ends, 0.0).topk(min(EACH, logits.shape[-1]), -1)
            level = [
                (chance * (chances[parent] if parent >= 0 else 1.0), row, parent, id)
                for row, (parent, *pairs) in enumerate(zip(front, found.tolist(), words.tolist(), strict=True))
                for chance, id in zip(*pairs, strict=True)
            ]
            level = [node for node in sorted(level, reverse=True) if node[0] >= LEAST]
            going = level[:WIDE]
            if not going:
                break
            front = list(range(len(tokens), len(tokens) + len(going)))
            for chance, _, parent, id in level:
                chances.append(chance)
                parents.append(parent)
                tokens.append(id)
            hidden = hidden[[row for _, row, _, _ in going]]
            ids = torch.tensor([id for _, _, _, id in going], device=hidden.device)
        best = sorted(range(len(tokens)), key=lambda node: -chances[node])[
            :k
        ]  # a parent is as likely, and stands before
        place = {node: i for i, node in enumerate(best)} | {-1: -1}
        return Proposal([tokens[node] for node in best], parents=[place[parents[node]] for node in best])

    def pack(self) -> Packed:
        return {} if self.last is None else {"last": self.last}, self.words.pack()

    def unpack(self, packed: Packed) -> HeadDraft:
        return replace(self, words=Words.unpack(packed[1]), last=packed[0].get("last"))


def start(model: Model) -> HeadDraft:
    """Errors: UnsupportedError where no head was trained for this model, IntegrityError for a damaged file."""
    decoder = model.decoder
    head = Ahead.load(model.folder, decoder.config.d_model, decoder.dtype).to(decoder.device)
    return HeadDraft(model, head, Words())
