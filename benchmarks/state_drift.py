"""How far a model drifts from itself when its recurrent memories are kept in fewer bits between forwards.

python benchmarks/state_drift.py pebble --tokens 100000 --json benchmarks/state_drift.json --plot state_drift.png

The stream is what the model itself says at temperature 1 (rows of equal length, one behind another). Every state dtype
reads it, `--chunk` tokens a forward, so that a memory is rounded once a chunk; 1 is decoding. Reported by position
against fp32: the logits' error as a share of their spread, the share of tokens where both would say the same, and the
Kullback-Leibler divergence. "rwkv7" and "mamba2" are small random models.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fluvial
from fluvial.models.decoder import BlockConfig, Decoder, DecoderConfig
from fluvial.models.rounded import STATE_DTYPES

ROWS = 16  # of the stream, said at once


def random_model(name: str) -> Decoder:
    """Four layers of width 256 with what the family begins training with."""
    torch.manual_seed(0)
    blocks = {
        "rwkv7": [
            block
            for i in range(4)
            for block in (
                BlockConfig("rwkv7_time", {"d_head": 64, "first": i == 0}),
                BlockConfig("rwkv7_channel", {"d_ff": 1024}),
            )
        ],
        "mamba2": [BlockConfig("mamba2", {"heads": 8, "d_head": 64, "d_state": 64})] * 4,
    }[name]
    decoder = Decoder(DecoderConfig(512, 256, tuple(blocks), "layer" if name == "rwkv7" else "rms"))
    return decoder.eval().requires_grad_(False)


def stream(decoder: Decoder, tokens: int) -> Tensor:
    """ids [1, tokens] of what the model says."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, decoder.config.vocab, (ROWS, 1), generator=draw)
    said, state = [ids], None
    for _ in range(-(-tokens // ROWS) - 1):
        hidden, state = decoder(decoder.embed(ids), state)
        ids = torch.multinomial(decoder.logits(hidden[:, -1]).softmax(-1), 1, generator=draw)
        said.append(ids)
    return torch.cat(said, 1).flatten()[None, :tokens]


@torch.no_grad()
def drift(decoder: Decoder, ids: Tensor, chunk: int) -> dict[str, list[dict[str, Any]]]:
    """Rows by state dtype: averages from the last doubling of the position to this one."""
    rows: dict[str, list[dict[str, Any]]] = {dtype: [] for dtype in STATE_DTYPES if dtype != "fp32"}
    states: dict[str, Any] = dict.fromkeys(STATE_DTYPES)
    sums = {dtype: torch.zeros(3, dtype=torch.float64) for dtype in rows}
    at, begun, mark = 0, 0, 2 * chunk
    for piece in ids.split(chunk, 1):
        logits = {}
        for dtype in STATE_DTYPES:
            decoder.keep(dtype)
            hidden, states[dtype] = decoder(decoder.embed(piece), states[dtype])
            logits[dtype] = decoder.logits(hidden[0]).double()
        wide = logits["fp32"]
        at += piece.shape[1]
        for dtype, each in rows.items():
            off = (logits[dtype] - wide).square().mean(-1).sqrt() / wide.std(-1)
            same = (logits[dtype].argmax(-1) == wide.argmax(-1)).double()
            other, own = logits[dtype].log_softmax(-1), wide.log_softmax(-1)
            sums[dtype] += torch.stack([off.sum(), same.sum(), (own.exp() * (own - other)).sum()])
            if at >= mark or at == ids.shape[1]:
                error, agreement, divergence = (sums[dtype] / (at - begun)).tolist()
                row = {"tokens": at, "error": error, "agreement": agreement, "divergence": divergence}
                each.append({key: float(f"{value:.4g}") for key, value in row.items()} | {"tokens": at})
                each[-1]["bytes"] = states[dtype].nbytes("recurrent")
                print(f"{dtype:6}{at:9,} tokens  error {error:8.2%}  same token {agreement:8.3%}  KL {divergence:.2e}")
                sums[dtype].zero_()
        if at >= mark:
            mark, begun = 2 * mark, at
    decoder.keep("fp32")
    wide_bytes = states["fp32"].nbytes("recurrent")
    print(f"bytes: fp32 {wide_bytes:,}, " + ", ".join(f"{d} {r[-1]['bytes']:,}" for d, r in rows.items()), flush=True)
    return rows


def plot(results: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """The error on the left, the agreement on the right, over the position."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for model, by_dtype in results.items():
        for dtype, rows in by_dtype.items():
            tokens = [row["tokens"] for row in rows]
            style = {"marker": "o", "ms": 3, "ls": "-" if dtype == "int8" else "--", "label": f"{model} {dtype}"}
            left.plot(tokens, [100 * row["error"] for row in rows], **style)
            right.plot(tokens, [100 * row["agreement"] for row in rows], **style)
    left.set(xscale="log", yscale="log", xlabel="position", ylabel="% of the logits' spread", title="Error of logits")
    right.set(xscale="log", xlabel="position", ylabel="%", title="Same greedy token as with fp32")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=7)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["pebble"], help="of the bundled ones, folders, rwkv7, mamba2")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--chunk", type=int, default=8, help="tokens between two roundings")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in args.models:
        decoder = random_model(name) if name in ("rwkv7", "mamba2") else fluvial.load_model(name).decoder
        with torch.no_grad():
            ids = stream(decoder, args.tokens)
        print(f"{name}, {args.chunk} tokens a forward", flush=True)
        results[name] = drift(decoder, ids, args.chunk)
    if args.json:
        about = {"tokens": args.tokens, "chunk": args.chunk, "models": results}
        args.json.write_text(json.dumps(about, indent=1) + "\n")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
