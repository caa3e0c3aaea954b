"""Memory and time against the length of the stream, for the bundled models: the plot in the README.

python benchmarks/memory.py --tokens 100000 --plot benchmarks/memory.png --json benchmarks/memory.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import fluvial

CHUNK = 512


def run(name: str, tokens: int, growing: int) -> list[dict[str, float]]:
    """Feeds random tokens and measures at every doubling and at the end: CPU time per token of the last chunk."""
    model = fluvial.load_model(name)
    tokens = tokens if model.explain()["state"] == "constant" else min(tokens, growing)
    draw = torch.Generator().manual_seed(1)
    vocab = model.decoder.config.vocab
    state, rows, mark = None, [], CHUNK
    for position in range(CHUNK, tokens + CHUNK, CHUNK):
        ids = torch.randint(0, vocab, (1, CHUNK), generator=draw)
        began = time.process_time()
        with torch.no_grad():
            _, state = model.decoder(model.decoder.embed(ids), state)
        seconds = (time.process_time() - began) / CHUNK
        if position >= mark or position >= tokens:
            rows.append({"tokens": position, "bytes": state.nbytes(), "us_per_token": round(seconds * 1e6, 1)})
            print(
                f"{name:20s} {position:8,} tokens {state.nbytes():12,} bytes {seconds * 1e6:8.1f} us a token",
                flush=True,
            )
            mark *= 2
    return rows


def plot(results: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Bytes on the left, time per token on the right, both over tokens."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, rows in results.items():
        tokens = [row["tokens"] for row in rows]
        left.plot(tokens, [row["bytes"] / 1e6 for row in rows], "o-", label=name)
        right.plot(tokens, [row["us_per_token"] for row in rows], "o-", label=name)
    for axes, title, unit in ((left, "Memory of a session", "MB"), (right, "CPU time per token", "microseconds")):
        axes.set(xscale="log", yscale="log", xlabel="tokens in the stream", ylabel=unit, title=title)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=None)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--growing", type=int, default=16_384, help="tokens for models whose memory grows")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {name: run(name, args.tokens, args.growing) for name in args.models or fluvial.bundled()}
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
