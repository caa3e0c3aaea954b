"""The composition matrix: axes as tables, cells as their product, and the plain run that every cell must equal.

A cell is one value of each axis. A further axis (drafts, caches, media) is a further table: `cells(AXES | {"draft":
DRAFTS})`, and a test that runs such a cell against `plain`.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fluvial.adapters.formats import Format
from fluvial.adapters.formats.base import Parts
from fluvial.adapters.formats.grouped import rounded
from fluvial.adapters.linear import Embedding, Linear
from fluvial.adapters.lora import LoraPair, Route
from fluvial.adapters.recipes import ROUNDED, matrices, recipe
from fluvial.engine import state_plugin
from fluvial.models.decoder import Decoder
from fluvial.models.state import State
from tests.models import zoo

# plugin -> route: "a" and "b" are LoRA on every projection, "s" is an initial state
ROUTES: dict[str, dict[str, float]] = {"none": {}, "lora": {"a": 1.0}, "blend": {"a": 0.7, "b": -0.4}}
ROUTES |= {"state and lora": {"s": 0.5, "a": 1.0}}
AXES: dict[str, Sequence[str]] = {
    "model": tuple(zoo.NAMES),
    "format": ("bf16", "int8", "int4", "int8-a8", "int4-a8"),
    "plugin": tuple(ROUTES),
    "split": ("whole", "pieces", "other pieces"),
}
BATCH, PROMPT, ANSWER = 2, 18, 4  # the prompt is longer than what kernels for a few tokens take
MARGIN = 1e-3  # between the two best logits of the plain run: fewer would test rounding
# Activations of 8 bits: one that lies between two of them may fall on either side, for a difference of fp32's rounding.
MARGIN_A8 = 0.1
STATELESS = ("transformer", "window")  # rows of tokens only: nothing to begin from


class Two(Format):
    """A matrix that multiplies activations of 8 bits, and one that multiplies them as they are."""

    name = "two"

    def pack(self, matrix: Tensor) -> Parts:
        return {"weight": matrix, "update": torch.zeros_like(matrix)}

    def unpack(self, parts: Parts) -> Tensor:
        return parts["weight"]

    def matmul(self, x: Tensor, parts: Parts) -> Tensor:
        return rounded(x, 8) @ parts["weight"].T + x @ parts["update"].T


TWO = Two()


class Cell(NamedTuple):
    model: str
    format: str
    plugin: str
    split: str


class Run(NamedTuple):
    """A prompt [B, T], the greedy tokens that follow it [B, N], and the logits of the last one [B, vocab]."""

    prompt: Tensor
    answer: Tensor
    logits: Tensor


def cells(axes: Mapping[str, Sequence[str]] = AXES) -> list[tuple[str, ...]]:
    """One value of each axis, all combinations."""
    return list(itertools.product(*axes.values()))


def pair(layer: Linear, seed: int) -> LoraPair:
    draw = torch.Generator().manual_seed(seed)
    A, B = torch.randn(2, layer.d_in, generator=draw), torch.randn(layer.d_out, 2, generator=draw)
    return LoraPair(A * 0.3, B * 0.3, scale=0.8)


def pairs(decoder: Decoder, plugin: str) -> dict[str, LoraPair]:
    """The plugin's update of every projection by its name; a tied table has two uses and gets none."""
    doors = {n: m for n, m in decoder.named_modules() if isinstance(m, Linear) and not isinstance(m, Embedding)}
    return {name: pair(door, 1000 * ord(plugin) + i) for i, (name, door) in enumerate(doors.items())}


def start(decoder: Decoder) -> dict[str, Tensor]:
    """A learned state: recurrent leaves [1, ...] by name."""
    draw = torch.Generator().manual_seed(5)
    return {n: torch.randn(leaf.shape, generator=draw) * 0.4 for n, leaf in state_plugin.recurrent(decoder).items()}


@cache
def base(model: str) -> Decoder:
    """A model of the zoo with larger matrices, so that what it says depends on all that went in."""
    decoder = copy.deepcopy(zoo.decoder(model, torch.float32))
    for layer in decoder.modules():
        if isinstance(layer, Linear) and not isinstance(layer, Embedding):
            layer.parts["weight"].mul_(3)
    return decoder


@cache
def packed(model: str, format: str) -> Decoder:
    """The model with its matrices in those formats and the plugins beside them."""
    decoder, chosen = copy.deepcopy(base(model)), recipe(format)
    for name, layer in matrices({"decoder": decoder}).items():
        layer.store(chosen.format(name, layer))
    for plugin in "ab":
        for name, update in pairs(decoder, plugin).items():
            decoder.get_submodule(name).attach(plugin, update)
    return decoder


def attach_start(decoder: Decoder) -> None:
    """The state plugin by way of its file. Errors: UnsupportedError for a model without recurrent state."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, state_plugin.FILE)
        state_plugin.write(path, start(decoder) or {"0.S": torch.ones(1)})
        state_plugin.read(path, decoder).attach("s")


def twin(model: str, format: str, plugin: str) -> tuple[Decoder, State]:
    """The same numbers without formats and plugins: dense matrices with LoRA added in, and the state before a token."""
    source, plain, route = packed(model, format), copy.deepcopy(base(model)), ROUTES[plugin]
    updates = {name: pairs(source, name) for name in route if name != "s"}
    for name, layer in source.named_modules():
        if isinstance(layer, Linear):
            matrix, update = layer.matrix().float(), torch.zeros(layer.d_out, layer.d_in)
            for which, found in updates.items():
                if (one := found.get(name)) is not None:
                    update = update + route[which] * one.scale * one.B @ one.A
            if layer.format.name.endswith(ROUNDED):
                plain.get_submodule(name).install(TWO, {"weight": matrix, "update": update})
            else:
                plain.get_submodule(name).parts["weight"].copy_(matrix + update)
    empty = plain.init_state(BATCH)
    if (strength := route.get("s")) is None:
        return plain, empty
    learned = {name: empty.leaves[name] + strength * leaf for name, leaf in start(plain).items()}
    return plain, State({**empty.leaves, **learned}, empty.position, empty.model)


@cache
def plain(model: str, format: str, plugin: str) -> Run:
    """Greedy tokens of the twin, on a prompt without near ties: they would test rounding."""
    decoder, before = twin(model, format, plugin)
    for seed in itertools.count():
        prompt = torch.randint(0, zoo.VOCAB, (BATCH, PROMPT), generator=torch.Generator().manual_seed(seed))
        run, margin = greedy(decoder, before, prompt)
        if margin > (MARGIN_A8 if format.endswith(ROUNDED) else MARGIN):
            return run
    raise AssertionError


def pieces(split: str, tokens: int) -> list[int]:
    """Sizes that add up to the tokens."""
    if split == "whole":
        return [tokens]
    draw = torch.Generator().manual_seed(AXES["split"].index(split))
    cuts = torch.randperm(tokens - 1, generator=draw)[:3].add(1).sort().values.tolist()
    return [end - begin for begin, end in itertools.pairwise([0, *cuts, tokens])]


@torch.no_grad()
def greedy(
    decoder: Decoder, state: State, prompt: Tensor, route: Route | None = None, sizes: Sequence[int] = (PROMPT,)
) -> tuple[Run, float]:
    """The prompt in pieces, then a token at a time; and the least margin between the two best logits."""
    for piece in prompt.split(list(sizes), 1):
        hidden, state = decoder(decoder.embed(piece, route), state, route=route)
    answer, least = prompt[:, :0], float("inf")
    while True:
        logits = decoder.logits(hidden[:, -1], route)
        best = logits.topk(2)
        least = min(least, float((best.values[:, 0] - best.values[:, 1]).min()))
        answer = torch.cat([answer, best.indices[:, :1]], 1)
        if answer.shape[1] == ANSWER:
            return Run(prompt, answer, logits), least
        hidden, state = decoder(decoder.embed(answer[:, -1:], route), state, route=route)


def run(cell: Cell) -> Run:
    """The cell as it is meant to be used, on the plain run's prompt."""
    decoder, route = packed(cell.model, cell.format), ROUTES[cell.plugin]
    if "s" in route and "s" not in decoder.starts:
        attach_start(decoder)
    prompt = plain(cell.model, cell.format, cell.plugin).prompt
    return greedy(decoder, decoder.init_state(BATCH, route), prompt, route, pieces(cell.split, PROMPT))[0]
