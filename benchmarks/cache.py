"""The state cache: time to the first token cold and warm, on one long prompt and on a chat with images.

python benchmarks/cache.py --tokens 30000

The long prompt goes through decoders of middle size with random weights (width 256, 4 layers), recurrent, hybrid and
Transformer: cold, the same again, with another end, and with 100 tokens less in the middle (twice: where chains parted,
the state was kept). The chat of ten turns, two of them with an image, is the bundled models and a hybrid of both: by
one session and by a caller who sends everything again with each turn. Wall times of one run each; bytes are what the
cache holds at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import fluvial
from fluvial.adapters import chips
from fluvial.engine.cache.cache import StateCache
from fluvial.engine.engine import Engine
from fluvial.engine.feed import Feed
from fluvial.engine.reading import Piece, read
from fluvial.models.decoder import BlockConfig, Decoder, DecoderConfig

ROOT = Path(__file__).parents[1]
D, LAYERS, VOCAB = 256, 4, 4096
FF = BlockConfig("swiglu", {"d_ff": 768})
DELTA = BlockConfig("gated_delta", {"heads": 4, "d_k": 64, "d_v": 64})
ATTENTION = BlockConfig("attention", {"heads": 4, "kv_heads": 2, "qk_norm": "rms"})
BLOCKS = {
    "recurrent": [DELTA, FF] * LAYERS,
    "hybrid": [*[DELTA, FF] * (LAYERS - 1), ATTENTION, FF],
    "transformer": [ATTENTION, FF] * LAYERS,
}
TURNS = 10
QUESTIONS = ("What do you see?", "How many shapes are there?", "What colour is the star?", "Where is the star?")


def decoder_model(kind: str) -> Any:
    """As much of a model as a feed needs: a decoder with random weights."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(VOCAB, D, tuple(BLOCKS[kind]))).requires_grad_(False).eval()
    name = decoder.fingerprint()
    return SimpleNamespace(
        decoder=decoder,
        tower=None,
        template=None,
        recipe=None,
        tokenizer=SimpleNamespace(controls=(), names={}),
        fingerprint=lambda: name,
        cache=None,
    )


def prompts(tokens: int) -> dict[str, list[int]]:
    ids = torch.randint(0, VOCAB, (tokens,), generator=torch.Generator().manual_seed(1)).tolist()
    end, middle = ids[: tokens - 200], tokens // 2
    shorter = ids[:middle] + ids[middle + 100 :]
    return {
        "cold": ids,
        "the same again": ids,
        "another end (200)": end + ids[:200],
        "100 less in the middle": shorter,
        "that with another end": shorter[:-200] + ids[:200],
        "first half again": ids[:middle] + ids[:200],
    }


def long_prompt(kinds: list[str], tokens: int, ram: str) -> None:
    print(f"prompt of {tokens:,} tokens, width {D}, {LAYERS} layers\n{'':24}", *prompts(tokens), sep=" | ")
    for kind in kinds:
        model = decoder_model(kind)
        read(Feed.start(model), [Piece(tuple(range(1000)))])  # warms up
        shown = []
        model.cache = StateCache(fluvial.Cache(ram=ram), model)
        for ids in prompts(tokens).values():
            began = time.perf_counter()
            reading = read(Feed.start(model), [Piece(tuple(ids))])
            shown.append(f"{time.perf_counter() - began:.2f} s ({reading.cached_tokens:,})")
        about = model.cache.inspect()
        held = f"{about['bytes'] / 1e6:.0f} MB in {about['states']} states"
        print(f"{kind:24}", " | ".join(shown), "|", held, flush=True)


def chat(name: str, cache: fluvial.Cache | None, *, stateless: bool) -> tuple[list[float], list[str], Engine]:
    """Seconds to the first token of each turn (pushing included), and the answers."""
    engine, messages, seconds, answers = fluvial.load(name, cache=cache), list[dict[str, Any]](), [], []
    session = engine.session()
    for turn in range(TURNS):
        began, content = time.perf_counter(), list[dict[str, Any]]()
        if stateless:
            session = engine.session(messages=messages)
        if turn in (0, 5):
            image = fluvial.Image("examples/media/shapes.jpg", max_pixels=10**6 + turn)
            content.append({"type": "image", "image": image})
            session.push(image)
        question = QUESTIONS[turn % len(QUESTIONS)]
        content.append({"type": "text", "text": question})
        events = session.ask(question, max_tokens=24)
        first = next(events)
        seconds.append(time.perf_counter() - began)
        *_, done = [first, *events]
        assert isinstance(done, fluvial.Done)
        answers.append(done.text)
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": done.text}]
    return seconds, answers, engine


def hybrid(folder: Path) -> Path:
    """pebble with the last attention layer of its Transformer sibling; its words mean nothing."""
    source, other = (ROOT / "models/pebble" / name for name in ("delta", "transformer"))
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("plugins", "draft_head*"))
    config, its = (json.loads((place / "config.json").read_text()) for place in (source, other))
    config["text_config"]["blocks"][6:8] = its["text_config"]["blocks"][6:8]
    (folder / "config.json").write_text(json.dumps(config))
    last = ("model.blocks.6.", "model.blocks.7.")
    own, added = (load_file(place / "model.safetensors") for place in (source, other))
    tensors = {name: t for name, t in own.items() if not name.startswith(last)}
    save_file(tensors | {name: t for name, t in added.items() if name.startswith(last)}, folder / "model.safetensors")
    return folder


def chats() -> None:
    print(f"\nchat of {TURNS} turns, images in the 1st and 6th: milliseconds to the first token, all turns together")
    made = tempfile.TemporaryDirectory()
    models = {name: name for name in fluvial.bundled()} | {"hybrid of both": str(hybrid(Path(made.name) / "hybrid"))}
    for name, place in models.items():
        chat(place, None, stateless=False)  # warms up
        rows = {
            "one session": chat(place, None, stateless=False),
            "sent again, no cache": chat(place, None, stateless=True),
            "sent again, cache": chat(place, fluvial.Cache(), stateless=True),
        }
        for how, (seconds, answers, engine) in rows.items():
            about = engine.cache.inspect() if engine.cache else {"bytes": 0, "hit_tokens": 0}
            held = f"{about['hit_tokens']:,} tokens from {about['bytes'] / 1e6:.1f} MB" if engine.cache else ""
            last = 1e3 * seconds[-1]
            print(f"{name:20} {how:22}{1e3 * sum(seconds):8.0f} ms, the last turn {last:5.0f} ms  {held}", flush=True)
            assert answers == rows["sent again, no cache"][1] or how == "one session"
    made.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--kinds", nargs="*", default=list(BLOCKS), choices=list(BLOCKS))
    parser.add_argument("--ram", default="2GB")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-chat", action="store_true")
    args = parser.parse_args()
    chips.load()
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        if args.kinds:
            long_prompt(args.kinds, args.tokens, args.ram)
    if not args.no_chat:
        chats()


if __name__ == "__main__":
    main()
