"""Small random decoders of every registered mixer and of hybrids, with every parameter perturbed."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from fluvial.models.decoder import BlockConfig, Decoder, DecoderConfig
from fluvial.models.state import State
from fluvial.models.tape import Tape

D, VOCAB = 32, 50
FF, FF2 = BlockConfig("swiglu", {"d_ff": 48}), BlockConfig("relu2", {"d_ff": 48})
DELTA = BlockConfig("gated_delta", {"heads": 4, "k_heads": 2, "d_k": 8, "d_v": 12})
HARD = BlockConfig("gated_delta", {"heads": 2, "d_k": 8, "d_v": 8, "gate": "hard"})
MAMBA = BlockConfig("mamba2", {"heads": 4, "d_head": 8, "d_state": 6, "groups": 2, "norm_groups": 2})
MAMBA1 = BlockConfig("mamba", {"d_inner": 48, "d_state": 6, "rank": 3})
FALCON = BlockConfig("mamba", {"d_inner": 40, "d_state": 5, "rank": 4, "bias": True, "bcdt_eps": 1e-6})
ATTENTION = BlockConfig("attention", {"heads": 4, "kv_heads": 2, "gate": True, "qk_norm": "rms1", "rotary": 0.5})
MROPE = BlockConfig("attention", {"heads": 4, "kv_heads": 2, "theta": 50.0, "sections": (2, 1, 1)})
MROPE_WINDOW = BlockConfig("attention", {"heads": 2, "rotary": 0.75, "sections": (2, 2, 2), "window": 7, "sinks": 3})
PLAIN = BlockConfig("attention", {"heads": 4, "bias": True})
WINDOW = BlockConfig("attention", {"heads": 4, "kv_heads": 2, "window": 7, "sinks": 3})
SHORT = BlockConfig("short_conv", {"conv": 4, "bias": True})
SSD = {"heads": 4, "d_head": 8, "d_state": 6, "norm": "none", "out_bias": True, "scales": (0.7, 1.3, 0.8, 1.2, 0.9)}
BESIDE = {
    "ssd": {"kind": "mamba2", "options": SSD, "scale_in": 1.1, "scale_out": 0.6},
    "attention": {"kind": "attention", "options": {"heads": 4, "kv_heads": 2, "scale": 0.2}, "scale_out": 0.8},
}
PARALLEL = BlockConfig("parallel", {"branches": BESIDE}, scale=0.7)
SCALED = BlockConfig("swiglu", {"d_ff": 48, "gate_scale": 1.4}, scale=0.7)
SIGNED = BlockConfig("gated_delta", {"heads": 4, "k_heads": 2, "d_k": 8, "d_v": 12, "beta_scale": 2.0, "split": True})
BEFORE = BlockConfig("mamba2", {"heads": 4, "d_head": 8, "d_state": 6, "norm": "before", "norm_groups": 2})
WHOLE = BlockConfig("attention", {"heads": 4, "kv_heads": 2, "qk_norm": "whole", "rotary": 0.0}, norm_after=True)
NO_SINKS = BlockConfig("attention", {"heads": 2, "window": 5})


def _rwkv(first: bool) -> list[BlockConfig]:
    time = BlockConfig("rwkv7_time", {"d_head": 8, "ranks": (4, 4, 3, 5), "first": first})
    return [time, BlockConfig("rwkv7_channel", {"d_ff": 48})]


BLOCKS: dict[str, list[BlockConfig]] = {
    "gated_delta": [DELTA, FF, HARD, FF],
    "mamba": [MAMBA1, FALCON],
    "mamba2": [MAMBA, MAMBA],
    "rwkv7": [*_rwkv(True), *_rwkv(False)],
    "transformer": [ATTENTION, FF, PLAIN, FF2],
    "window": [WINDOW, FF, NO_SINKS, FF],
    "delta_hybrid": [DELTA, FF, DELTA, FF, DELTA, FF, ATTENTION, FF],
    "media_hybrid": [DELTA, FF, MROPE, FF, MAMBA, MROPE_WINDOW, FF],
    "short_conv": [SHORT, FF, SHORT, FF],
    "scaled_hybrid": [PARALLEL, SCALED, SIGNED, FF, WHOLE, BEFORE],
    "everything": [*_rwkv(True), MAMBA, WINDOW, DELTA, PLAIN, *_rwkv(False), FF2],
}
NAMES = list(BLOCKS)
RECURRENT = ("gated_delta", "mamba", "mamba2", "rwkv7", "short_conv", "window")


@cache
def decoder(name: str, dtype: torch.dtype = torch.float64) -> Decoder:
    """The decoder of that name; every parameter is moved off its default, which can hide a mistake."""
    torch.manual_seed(3)
    layer = name in ("rwkv7", "everything")
    config = DecoderConfig(
        VOCAB, D, tuple(BLOCKS[name]), "layer" if layer else "rms1", tied_head=name != "mamba2", embed_norm=layer
    )
    model = Decoder(config).to(dtype).requires_grad_(False)
    for parameter in model.parameters():
        parameter += torch.randn_like(parameter) * 0.1
    return model


def inputs(batch: int, tokens: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, tokens, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def leaf_tensors(state: State) -> dict[str, Tensor]:
    """Every leaf as plain tensors, with the scratch behind a tape's rows cut away."""
    tensors: dict[str, Tensor] = {}
    for name, leaf in state.leaves.items():
        if isinstance(leaf, Tape):
            for part, rows in zip("kv", leaf.rows, strict=True):
                ends = [row[:, :n].flatten() for row, n in zip(rows, leaf.lengths, strict=True)]
                tensors[f"{name}.{part}"] = torch.cat(ends)
        else:
            tensors[name] = leaf
    return tensors


def distance(a: State, b: State) -> float:
    """The largest difference between two states, relative to the size of the values."""
    assert a.position == b.position and a.rotary == b.rotary
    left, right = leaf_tensors(a), leaf_tensors(b)
    assert left.keys() == right.keys()
    return max((gap(left[name], right[name]) for name in left), default=0.0)


def gap(a: Tensor, b: Tensor) -> float:
    """max |a - b| over max(1, max |b|)."""
    assert a.shape == b.shape
    return 0.0 if a.numel() == 0 else ((a - b).abs().max() / b.abs().max().clamp(min=1)).item()


def row_of(state: State, b: int) -> State:
    """One row of a batch as a state of its own."""
    leaves = {}
    for name, leaf in state.leaves.items():
        if isinstance(leaf, Tape):
            n = leaf.lengths[b]
            k, v = leaf.rows
            leaves[name] = Tape.of(k[b : b + 1, :, :n], v[b : b + 1, :, :n], (n,))
        else:
            leaves[name] = leaf[b : b + 1]
    return State(leaves, (state.position[b],), state.model, state.shift[b : b + 1])


def media_positions(batch: int, tokens: int, seed: int) -> Tensor:
    """Rotary positions [3, B, T] of rows of text and pictures: those count rows and columns, then text goes on."""
    draw, rows = torch.Generator().manual_seed(seed), []
    for _ in range(batch):
        runs, at = [torch.zeros(3, 0, dtype=torch.long)], 0
        while sum(run.shape[1] for run in runs) < tokens:
            text, height, width = (int(torch.randint(1, 6, (), generator=draw)) for _ in range(3))
            runs.append(torch.arange(at, at + text).expand(3, -1))
            grid = torch.meshgrid(torch.arange(1), torch.arange(height), torch.arange(width), indexing="ij")
            runs.append(torch.stack(grid).flatten(1) + at + text)
            at += text + max(height, width)
        rows.append(torch.cat(runs, 1)[:, :tokens])
    return torch.stack(rows, 1)
