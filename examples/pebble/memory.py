"""What teaches a memory to last: long stretches that bring nothing new, and a price on what is written during them.

The answer at the end of a stretch says little about each of its thousands of tokens; the price says it at every one. It
is on the heads that forget slowly: what they write on idle tokens, and how fast they decay there. A head that pays
nothing holds for as long as one likes, so stretches of a thousand tokens teach what a stream of many thousands needs.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from examples.pebble.batches import MEDIA, VIDEO_TOKENS, Batch, Row, collate
from examples.pebble.model import Pebble
from examples.pebble.tokens import ASSISTANT, END, FRAME, USER
from examples.pebble.world import QA, ask, filler, video_sample
from examples.pebble.world.texts import PASSKEYS
from fluvial.models.gated_delta import GatedDelta

SLOW = 1.5e-3  # a head whose log decay a token is below this is one to remember with
SPAN = 20_000  # tokens that it should bridge
TURN = 1 + VIDEO_TOKENS  # tokens of a pair of frames
COPIES = 2


def idle_batch(rng: np.random.Generator, tokenizer: Tokenizer, level: float, tokens: int, video: bool) -> Batch:
    """About `tokens` of rows that are mostly idle, clips or texts, between 150 and 900 tokens each."""
    length = int(2 ** rng.uniform(np.log2(150), np.log2(900)))
    make = quiet_video if video else quiet_text
    return collate([make(rng, tokenizer, level, length) for _ in range(max(2, tokens // length))])


def quiet_video(rng: np.random.Generator, tokenizer: Tokenizer, level: float, tokens: int) -> Row:
    """A clip with about `tokens` of standstill before and after what happens, and its questions."""
    coded = rng.random() < 0.6
    tasks = ["flash_code"] if coded else ["first", "last", "video_count"]
    sample = video_sample(rng, level, 2, frames=4 if coded else 8, tasks=tasks)
    assert sample.frames is not None
    pairs = sample.frames.reshape(-1, 2, *sample.frames.shape[1:])
    before, after = 0, len(pairs) - 1  # what stands still: the clip's first and last pair, but never the code
    if sample.code_at is not None:
        before = after = 1 if sample.code_at == 0 else 0
    still = [_grainy(rng, pairs[k]) for k in (before, after)]
    waits = tokens // TURN
    lead = int(rng.integers(0, waits // 3 + 1)) if rng.random() < 0.4 else 0
    n = len(pairs)
    shown = [n + k % COPIES for k in range(lead)] + list(range(n))
    shown += [n + COPIES + k % COPIES for k in range(waits - lead)]
    ids, idle = [USER], [False]
    for k in shown:
        ids += [FRAME] + [MEDIA] * VIDEO_TOKENS
        idle += [k >= n] * TURN
    return _asked(tokenizer, Row(ids, [], np.concatenate([pairs, *still]), 1, shown, idle), sample.qa)


def quiet_text(rng: np.random.Generator, tokenizer: Tokenizer, level: float, tokens: int) -> Row:
    """A pass key between two stretches of filler, and the question for it."""
    key = str(rng.integers(10000, 100000))
    fact = PASSKEYS[rng.integers(len(PASSKEYS))].format(v=key)
    lead = int(rng.integers(0, tokens // 3)) if rng.random() < 0.4 else 0
    ids, idle = [USER], [False]
    parts = ((filler(rng, 3 * lead), lead), (f" {fact} ", 0), (filler(rng, 3 * (tokens - lead)), tokens - lead))
    for text, room in parts:
        part = tokenizer.encode(text).ids[: room or None]
        ids += part
        idle += [room > 0] * len(part)
    return _asked(tokenizer, Row(ids, [], idle=idle), [QA("passkey", ask(rng, "passkey"), key)])


def _grainy(rng: np.random.Generator, pair: np.ndarray) -> np.ndarray:
    noise = rng.normal(0, rng.uniform(0, 4), (COPIES, *pair.shape[:3], 1))
    return (pair + noise).clip(0, 255).astype(np.uint8)


def _asked(tokenizer: Tokenizer, row: Row, turns: list[QA]) -> Row:
    """The row with its questions."""
    row.answer = [False] * len(row.ids)
    for i, qa in enumerate(turns):
        question = [*([USER] if i else []), *tokenizer.encode(qa.question).ids, ASSISTANT]
        reply = [*tokenizer.encode(qa.answer).ids, END]
        row.ids += [*question, *reply]
        row.answer += [False] * len(question) + [True] * len(reply)
    return row


def idle_loss(model: Pebble, batch: Batch, price: float = 0.3, price_of_decay: float = 0.03) -> tuple[Tensor, Tensor]:
    """`Pebble.loss`, and the price of what the slow heads do on idle tokens."""
    assert batch.idle is not None
    heard: dict[tuple[int, str], Tensor] = {}
    mixers = [m for m in model.decoder.modules() if isinstance(m, GatedDelta)]
    hooks = [
        getattr(m, name).register_forward_hook(lambda _, x, y, key=(i, name): heard.__setitem__(key, y.float()))
        for i, m in enumerate(mixers)
        for name in ("in_proj_a", "in_proj_b")
    ]
    try:
        loss, right = model.loss(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for i, m in enumerate(mixers):
        a, b = (heard[i, name][batch.idle] for name in ("in_proj_a", "in_proj_b"))  # [idle tokens, H]
        decay = m.A_log.exp() * F.softplus(a + m.dt_bias)
        slow = decay.detach().mean(0) < SLOW
        written = (1.3 * b.sigmoid() - 0.2).clamp(0, 1).mean(0)
        loss = loss + (slow * (price * written + price_of_decay * torch.log1p(SPAN * decay).mean(0))).sum()
    return loss, right
