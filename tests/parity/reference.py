"""The parity harness: a reference implementation against Fluvial on the same small random checkpoint.

A family's test file makes a checkpoint and checks it:

    model = perturbed(Qwen3ForCausalLM(Qwen3Config(hidden_size=64, ...)))  # every norm, bias, A_log off its default
    model.save_pretrained(folder)
    check_family(model, folder)                                           # loads `folder` as a user would

`reference` is a Transformers causal LM, or any function from ids int64 [1, T] to logits [1, T, vocab] (then `low`, the
same in bf16, may be given). It is only ever asked for one-shot logits: some references drop the state of a chunk that
continues another. Each check prints a row of the parity table (`pytest -s`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fluvial.engine.loading import load_parts
from fluvial.models.decoder import Decoder
from fluvial.models.state import State

M = TypeVar("M", bound=nn.Module)
Reference = Callable[[Tensor], Tensor]
TOLERANCE = 1e-4  # of the logits' spread, in fp32
TOKENS, GREEDY = 40, 12


@dataclass(frozen=True)
class Parity:
    """The largest errors over the logits' spread; `bf16`: our rms error over the reference's own (0: not measured)."""

    one_shot: float
    split: float
    step: float
    greedy: int
    bf16: float = 0.0

    def __str__(self) -> str:
        low = f"  bf16 {self.bf16:.2f}x" if self.bf16 else ""
        return (
            f"one-shot {self.one_shot:.1e}  split {self.split:.1e}  step {self.step:.1e}  greedy {self.greedy}/{GREEDY}"
            + low
        )


def perturbed(model: M, scale: float = 0.1, seed: int = 5) -> M:
    """The model with noise on every parameter, in fp32, for eval: a default init hides mistakes like w for 1 + w."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * scale
    return model.float().eval().requires_grad_(False)


def tokens(vocab: int, count: int = TOKENS, seed: int = 1) -> Tensor:
    """Random ids int64 [1, count]."""
    return torch.randint(0, vocab, (1, count), generator=torch.Generator().manual_seed(seed))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """The decoder of a checkpoint folder by the usual loading path; it needs no tokenizer."""
    return load_parts(folder, dtype).decoder


@torch.no_grad()
def logits(decoder: Decoder, ids: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """ids int64 [B, T] -> logits [B, T, vocab] in fp32, and the state after them."""
    hidden, state = decoder(decoder.embed(ids), state)
    return decoder.logits(hidden).float(), state


def split_logits(decoder: Decoder, ids: Tensor, sizes: list[int]) -> Tensor:
    """The logits of `ids` fed in chunks of these sizes."""
    assert sum(sizes) == ids.shape[1]
    state, chunks = None, []
    for chunk in ids.split(sizes, 1):
        out, state = logits(decoder, chunk, state)
        chunks.append(out)
    return torch.cat(chunks, 1)


def error(ours: Tensor, reference: Tensor) -> float:
    """max |difference| over the spread (max - min) of the reference."""
    assert ours.shape == reference.shape, f"{list(ours.shape)}, the reference has {list(reference.shape)}"
    return ((ours - reference).abs().max() / (reference.max() - reference.min())).item()


def splits(count: int, seed: int) -> list[int]:
    """Random chunk sizes of 1..9 tokens with this sum."""
    generator, sizes = torch.Generator().manual_seed(seed), []
    while left := count - sum(sizes):
        sizes.append(min(left, int(torch.randint(1, 10, (1,), generator=generator))))
    return sizes


def greedy_reference(reference: Reference, ids: Tensor, count: int = GREEDY) -> list[int]:
    """The reference's greedy continuation, each token from a one-shot forward over everything before it."""
    for _ in range(count):
        ids = torch.cat([ids, reference(ids)[:, -1:].argmax(-1)], 1)
    return ids[0, -count:].tolist()


def greedy(decoder: Decoder, ids: Tensor, count: int = GREEDY) -> list[int]:
    """Our greedy continuation, token by token on the state."""
    words: list[int] = []
    out, state = logits(decoder, ids)
    while len(words) < count:
        words.append(int(out[0, -1].argmax()))
        out, state = logits(decoder, torch.tensor([words[-1:]]), state)
    return words


def check_family(
    reference: nn.Module | Reference,
    folder: Path,
    *,
    vocab: int | None = None,
    low: Reference | None = None,
    bf16: bool = True,
    tolerance: float = TOLERANCE,
) -> Parity:
    """Asserts that the checkpoint in `folder` gives the reference's numbers: one-shot logits, two random splits, single
    steps, greedy tokens, and bf16 logits no further from the truth than the reference's own bf16 (x 1.25, for luck)."""
    name, truth = folder.name, called(reference)
    decoder = load(folder)
    vocab = vocab or decoder.config.vocab
    ids = tokens(vocab)
    expected = truth(ids)
    one_shot = error(logits(decoder, ids)[0], expected)
    split = max(error(split_logits(decoder, ids, splits(ids.shape[1], seed)), expected) for seed in (2, 3))
    step = error(split_logits(decoder, ids, [1] * ids.shape[1]), expected)
    wanted, given = greedy_reference(truth, ids), greedy(decoder, ids)
    same = sum(a == b for a, b in zip(wanted, given, strict=True))
    ratio = 0.0
    if bf16 and low is None and isinstance(reference, nn.Module):
        low = called(copy.deepcopy(reference).bfloat16())
    if bf16 and low is not None:
        half, samples = load(folder, torch.bfloat16), [tokens(vocab, seed=seed) for seed in range(4)]
        mine = sum(_square(logits(half, ids)[0], truth(ids)) for ids in samples)
        ratio = (mine / sum(_square(low(ids), truth(ids)) for ids in samples)) ** 0.5
    parity = Parity(one_shot, split, step, same, ratio)
    print(f"parity  {name:24} {parity}")
    assert max(one_shot, split, step) <= tolerance, f"{name}: {parity}"
    assert wanted == given, f"{name}: greedy {given}, the reference says {wanted}"
    assert ratio <= 1.25, f"{name}: bf16 is {ratio:.2f} times as far off as the reference's"
    return parity


def called(reference: nn.Module | Reference) -> Reference:
    """A function from ids to fp32 logits, without gradients, for a Transformers model or such a function."""

    @torch.no_grad()
    def call(ids: Tensor) -> Tensor:
        result: Any = reference(ids)
        out: Tensor = result if isinstance(result, Tensor) else result.logits
        return out.float()

    return call


def _square(a: Tensor, b: Tensor) -> float:
    return (a - b).square().sum().item()
