"""What drafts give: tokens per forward of the model, the share of guesses that were right, time against no draft.

python benchmarks/speculation.py --models rwkv7-0.4b qwen3.5-0.8b qwen3-0.6b --quant int4

Published sizes have random weights, so their words mean nothing: the answer is given, and the model only works for it.
Look-up is then as right as it is on that text (an edited copy of a file, every third line of a text quoted, a page that
goes on, free prose behind code; the draft has read the whole prompt, the model its first 64 tokens). "simulated" rows
draw whether each guess of a draft that costs nothing is right. Each row is a few answers by turns without and with the
draft: the ratio of all, and of each in brackets. A row's controller knows what forwards cost, as after loading, and
nothing else before the first answer. The bundled models answer for real, and equal words with every draft are checked.
With `--clock cpu`, time is the CPU time of one thread, for a
machine that has other work: the controller measures in it too.
"""

from __future__ import annotations

import argparse
import copy
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from decode import CONFIGS, built

import fluvial
from fluvial.adapters import chips
from fluvial.engine import answer as answers
from fluvial.engine import costs, speculation
from fluvial.engine.costs import DEPTHS, measured
from fluvial.engine.depth import Depth
from fluvial.engine.draft import Context, Draft, Proposal, Seen
from fluvial.engine.drafts import ngram
from fluvial.engine.feed import Feed
from fluvial.engine.sampling import Sampler
from fluvial.engine.speculation import Decoding

ROOT = Path(__file__).parents[1]
MODELS = ["rwkv7-0.4b", "qwen3.5-0.8b", "qwen3-0.6b"]
CHANCES = (0.0, 0.5, 0.8, 1.0)
READ = 64  # tokens of the prompt that the model reads


class Told(Sampler):
    """Does its work, then says what it was told to say."""

    def __init__(self, answer: Sequence[int]) -> None:
        super().__init__()
        self.answer = iter(answer)

    def sample(self, logits: torch.Tensor, history: Sequence[int] = ()) -> int:
        super().sample(logits, history)
        return next(self.answer)


@dataclass(frozen=True)
class Simulated:
    """Knows the answer and errs by chance."""

    answer: Sequence[int]
    chance: float
    seen: int = 0
    name: str = "simulated"

    def observe(self, seen: Seen) -> Simulated:
        return replace(self, seen=self.seen + len(seen.ids or ()))

    def propose(self, context: Context, k: int) -> Proposal:
        draw, at = random.Random(self.seen), self.seen + 1
        truth = self.answer[at : at + k]
        return Proposal([id if draw.random() < self.chance else 1 - min(id, 1) for id in truth])


def timed(feed: Feed, answer: Sequence[int], depth: Depth) -> tuple[float, Decoding]:
    """Seconds for the answer."""
    decoding = Decoding(feed, Told(answer), depth, [], [])
    began = speculation.time.perf_counter()
    for left in reversed(range(len(answer))):
        decoding.take(decoding.choose(), left)
    decoding.leave()
    return speculation.time.perf_counter() - began, decoding


def row(label: str, times: str, tokens: int, forwards: int, drafted: int, accepted: int) -> None:
    right = f"{accepted / drafted:4.0%} of {drafted}" if drafted else "no guesses"
    print(f"  {label:34} {tokens / forwards:5.2f} tokens/forward   {right:12} right   {times}", flush=True)


def workloads(tokens: int) -> dict[str, tuple[list[int], list[int]]]:
    """Prompt and answers of each, so many tokens in all, in the bundled vocabulary."""
    encode = fluvial.load_model("pebble").tokenizer.encode
    code, text = (ROOT / "engine/feed.py").read_text(), (ROOT / "README.md").read_text()
    turns = (ROOT / "examples/pebble/README.md").read_text()
    quoted = "\n".join(text[:4000].splitlines()[::3])
    pairs = {
        "copy with edits": (code, code.replace("state", "memory")),
        "extraction": (text[:4000], quoted),
        "chat": (turns[: len(turns) // 2], turns[len(turns) // 2 :]),
        "free prose": (code, text),
    }
    return {name: (encode(p, special=False), encode(a, special=False)[:tokens]) for name, (p, a) in pairs.items()}


def full_size(name: str, quant: str, texts: dict[str, tuple[list[int], list[int]]], answers: int, rows: str) -> None:
    """The table of one published size."""
    model: Any = SimpleNamespace(decoder=built(CONFIGS[name], quant, torch.float32))
    prompt = next(iter(texts.values()))[0][:READ]
    start = Feed.start(model).ids(prompt)
    told = texts["free prose"][1]
    timed(start, told[:4], Depth())
    began = speculation.time.perf_counter()
    known = measured(model.decoder)
    took = speculation.time.perf_counter() - began
    over = ", ".join(f"{depth + 1}: {known(depth + 1) / known(1):.2f}" for depth in DEPTHS[:-1])
    print(f"{name} {quant}: a plain forward {1e3 * known(1):.0f} ms, over T tokens {over}; measured in {took:.1f} s")
    tried: list[tuple[str, Draft, list[int]]] = []
    for workload, (read, told) in texts.items():
        tried.append((f"{workload}, look-up", ngram.start(model).observe(Seen(read)), told))
    tried += [(f"simulated, {chance:.0%} right", Simulated(told, chance), told) for chance in CHANCES]
    for label, draft, told in tried:
        if not re.search(rows, label):
            continue
        depth, ratios, size = Depth(copy.deepcopy(known)), list[float](), len(told) // answers
        figures, plain, drafting = [0, 0, 0, 0], 0.0, 0.0
        for at in range(0, size * answers, size):
            part = told[at : at + size]
            alone, _ = timed(start, part, Depth())
            seconds, done = timed(replace(start, draft=draft), part, depth)
            draft, plain, drafting = draft.observe(Seen(part)), plain + alone, drafting + seconds
            ratios.append(alone / seconds)
            new = (size, done.forwards, done.drafted, done.accepted)
            figures = [old + more for old, more in zip(figures, new, strict=True)]
        each = " ".join(f"{ratio:.2f}" for ratio in ratios)
        row(label, f"{plain / drafting:5.2f}x  ({each})", *figures)


def bundled(name: str, drafts: Sequence[str]) -> None:
    """The table of a bundled model, whose answers are real."""
    engine = fluvial.load(name)
    media = ROOT / "examples/media"
    print(f"{name}: its own answers")
    for workload in ("describing an image", "describing a video", "the same questions again"):
        medium = fluvial.Video(media / "clip.mp4") if "video" in workload else fluvial.Image(media / "shapes.jpg")
        questions = ["What do you see?", "What colour is the star?", "How many shapes are there?"]
        questions = questions * (3 if "again" in workload else 1)
        plain, said = 0.0, []
        for draft in ("none", *drafts):
            best, figures, texts = float("inf"), [0, 0, 0, 0], []
            session = engine.session(draft=draft)
            session.push(medium)
            begin = session.snapshot()
            for _ in range(3):
                session.restore(begin)
                usages, texts = [], []
                for question in questions:
                    *_, done = session.ask(question, max_tokens=48)
                    usages.append(done.usage)
                    texts.append(done.text)
                best = min(best, sum(usage.completion_seconds for usage in usages))
                tokens, forwards = (sum(getattr(u, key) for u in usages) for key in ("completion_tokens", "forwards"))
                drafted = sum(usage.drafted_tokens for usage in usages)
                figures = [tokens, forwards, drafted, sum(usage.accepted_tokens for usage in usages)]
            plain, said = (best, texts) if draft == "none" else (plain, said)
            assert texts == said, "a draft changed the words"
            if draft != "none":
                row(f"{workload}, {draft}", f"{plain / best:5.2f}x", *figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="*", default=["rwkv7-0.4b", "qwen3.5-0.8b", "qwen3-0.6b"], choices=list(CONFIGS)
    )
    parser.add_argument("--quant", default="int4")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--answers", type=int, default=3, help="one after the other, of each row")
    parser.add_argument("--rows", default="", help="only those that this expression finds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1 if args.clock == "cpu" else args.threads)
    chips.load()
    if args.clock == "cpu":
        for module in (speculation, answers, costs):
            mock.patch.object(module, "time", SimpleNamespace(perf_counter=time.process_time)).start()
    texts = workloads(args.tokens * args.answers)
    for name in args.models:
        full_size(name, args.quant, texts, args.answers, args.rows)
    if not args.models or args.models == MODELS:
        bundled("pebble", ("ngram", "head", "pebble/transformer"))


if __name__ == "__main__":
    main()
