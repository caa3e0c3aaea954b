"""Hours of streaming, and what they cost: a live session reads text and frames while state, memory and time are noted.

    python benchmarks/soak.py pebble --tokens 1000000 --frames 10000 --json benchmarks/soak/pebble.json
    python benchmarks/soak.py pebble --hours 8
    python benchmarks/soak.py benchmarks/shapes/rwkv7-0.4b.json --quant int8 --tokens 1000000

It goes on until the tokens and frames are read or the hours are over, whichever is first; with hours alone the mix is
that of the defaults, again and again. A config.json is a shape with random weights, which reads random ids. Times are
of the processor, all threads together, over the last hundredth. The first figures count from one per cent on, when
everything is warm.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from fluvial.adapters import pages
from fluvial.adapters.formats.product import size
from fluvial.encoders.frame import Frame
from fluvial.engine.engine import Engine
from fluvial.engine.measure import CHUNK, decoder_of, resident_bytes
from fluvial.engine.recall.filler import sentence
from fluvial.models.decoder import Decoder

STEPS = 100
AT_ONCE = 2048  # tokens of text pushed at once
Held = tuple[int, int, int]  # tokens, frames, bytes of state and tape


def live(engine: Engine, tokens: int, frames: int) -> Iterator[Held]:
    """A hundredth of the tokens of text and of the frames for each item; goes on for ever. Texts in the first one have
    all sizes for which torch compiles and keeps a product."""
    rng, encode = np.random.default_rng(1), engine.model.tokenizer.encode
    ground = rng.integers(0, 256, (8, 8, 3), np.uint8)
    shown = read = step = 0
    sizes = sorted({size(rows) for rows in range(1, CHUNK + 1)})
    with engine.live(overflow="block") as session:
        while True:
            step += 1
            while shown < frames * step // STEPS:
                ground[rng.integers(8), rng.integers(8)] = rng.integers(0, 256, 3)
                session.push(Frame(ground.repeat(8, 0).repeat(8, 1), shown / 2, shown))
                shown += 1
            while read < tokens * step // STEPS:
                text, goal = "", min(read + (sizes.pop() if sizes else AT_ONCE), tokens * step // STEPS)
                while read < goal:
                    line = sentence(rng)
                    text, read = text + line, read + len(encode(line, special=False, first=False))
                session.push(text)
            now = session.flush()
            yield now.tokens, now.frames, now.state_bytes + now.tape_bytes


def ids(decoder: Decoder, tokens: int) -> Iterator[Held]:
    """A hundredth of the tokens as random ids for each item."""
    draw, state = torch.Generator().manual_seed(1), None
    while True:
        for _ in range(max(1, tokens // STEPS // CHUNK)):
            chunk = torch.randint(0, decoder.config.vocab, (1, CHUNK), generator=draw)
            with torch.no_grad():
                _, state = decoder(decoder.embed(chunk), state)
        assert state is not None
        yield state.position[0], 0, state.nbytes()


def soak(stream: Iterator[Held], done: Callable[[int, int], bool], seconds: float) -> list[dict[str, float]]:
    """A row for every hundredth, until `done(tokens, frames)` or the seconds are over."""
    rows: list[dict[str, float]] = []
    began, last, before = time.perf_counter(), time.process_time(), 0
    for tokens, frames, held in stream:
        us = (time.process_time() - last) / (tokens - before) * 1e6
        wall = time.perf_counter() - began
        pages.trim(0)  # the C library keeps up to 64 MB of what was freed
        rows.append({
            "seconds": round(wall, 1), "tokens": tokens, "frames": frames, "bytes": held,
            "resident_bytes": resident_bytes(), "us_per_token": round(us, 2),
        })  # fmt: skip
        print(f"{wall:8.0f} s {tokens:10,} tokens {frames:7,} frames {held:12,} bytes of state, "
              f"{rows[-1]['resident_bytes'] / 2**20:8.1f} MiB resident, {us:8.1f} us a token", flush=True)  # fmt: skip
        if done(tokens, frames) or wall > seconds:
            break
        last, before = time.process_time(), tokens
    return rows


def verdict(rows: list[dict[str, float]]) -> dict[str, float]:
    """The end against the first hundredth: bytes, resident memory and time per token (medians of a tenth)."""
    first, last, tenth = rows[0], rows[-1], max(1, len(rows) // 10)

    def us(part: list[dict[str, float]]) -> float:
        return statistics.median(row["us_per_token"] for row in part)

    return {
        "tokens": last["tokens"],
        "frames": last["frames"],
        "state_bytes_at_1_percent": first["bytes"],
        "state_bytes_at_the_end": last["bytes"],
        "resident_growth": round(last["resident_bytes"] / first["resident_bytes"] - 1, 4),
        "time_growth": round(us(rows[-tenth:]) / us(rows[:tenth]) - 1, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, help="of text (default 1,000,000)")
    parser.add_argument("--frames", type=int, help="of video, small ones (default 10,000)")
    parser.add_argument("--hours", type=float, help="at most; without tokens and frames, exactly")
    parser.add_argument("--quant")
    parser.add_argument("--dtype")
    parser.add_argument("--kv", default="exact")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    endless = args.hours is not None and args.tokens is None and args.frames is None
    tokens, frames = args.tokens or 1_000_000, 10_000 if args.frames is None else args.frames
    decoder, model = decoder_of(args.model, dtype=args.dtype, quant=args.quant, kv=args.kv)
    stream = ids(decoder, tokens) if model is None else live(Engine(model), tokens, frames if model.tower else 0)
    count = 0

    def done(read: int, seen: int) -> bool:
        nonlocal count
        count += 1
        return not endless and count == STEPS

    rows = soak(stream, done, float("inf") if args.hours is None else 3600 * args.hours)
    about = {key: value for key, value in vars(args).items() if key != "json"}
    result = {**about, **verdict(rows), "torch": torch.__version__, "rows": rows}
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
