"""What plugins cost: switching between them on the bundled model, and tokens with them on it and on published sizes.

python benchmarks/plugins.py --rank 8
python benchmarks/plugins.py --rank 16 --sizes qwen3.5-0.8b rwkv7-0.4b --recipe int4 --threads 2

Random LoRA on every projection of the blocks, in bf16 as plugins are published. A switch is all that happens when a
session or a question names another plugin; the base's weights stay where they are (their addresses are compared).
Tokens are whole ones (embedding, blocks, head, greedy), one at a time, by turns without and with plugins; medians of
wall time. "two in turn" are two sessions with a plugin each, a token from one and then from the other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from decode import CONFIGS, built
from safetensors.torch import save_file

import fluvial
from fluvial.adapters import chips
from fluvial.adapters.linear import Embedding, Linear
from fluvial.adapters.lora import LoraPair
from fluvial.models.decoder import Decoder

NAMES, SAMPLES, SECONDS = ("a", "b", "c"), 25, 0.02


def median_us(call: Callable[[], object]) -> float:
    """CPU microseconds of one call: the median over samples of about 20 ms each."""
    call()
    began = time.thread_time()
    call()
    repeats = max(1, int(SECONDS / max(time.thread_time() - began, 1e-6)))
    samples = []
    for _ in range(SAMPLES):
        began = time.thread_time()
        for _ in range(repeats):
            call()
        samples.append((time.thread_time() - began) / repeats)
    return statistics.median(samples) * 1e6


def write(folder: Path, model: fluvial.Model, rank: int, seed: int) -> Path:
    """A random LoRA plugin as PEFT writes it."""
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for name, door in model.decoder.named_modules():
        if isinstance(door, Linear) and not isinstance(door, Embedding):
            key = f"base_model.model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, door.d_in, generator=draw) * 0.02
            tensors[f"{key}.lora_B.weight"] = torch.randn(door.d_out, rank, generator=draw) * 0.02
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def attach(decoder: Decoder, rank: int) -> int:
    """A random plugin under each of NAMES; how many values one has."""
    draw, size = torch.Generator().manual_seed(0), 0
    for name in NAMES:
        size = 0
        for door in decoder.blocks.modules():
            if isinstance(door, Linear):
                A, B = (torch.randn(rank, n, generator=draw).mul_(0.02).bfloat16() for n in (door.d_in, door.d_out))
                door.attach(name, LoraPair(A, B.T))
                size += A.numel() + B.numel()
    return size


@torch.inference_mode()
def tokens(decoder: Decoder, count: int) -> None:
    """Prints tokens a second without plugins, with one, with a blend of all, and of two sessions in turn."""
    blend = dict.fromkeys(NAMES, 0.3)
    ways: dict[str, list[dict[str, float] | None]] = {"none": [None], "one": [{"a": 1.0}], "a blend of three": [blend]}
    ways["two in turn"] = [{"a": 1.0}, {"b": 1.0}]
    start = torch.randint(0, decoder.config.vocab, (1, 32), generator=torch.Generator().manual_seed(1))
    sessions = {way: [decoder(decoder.embed(start))[1] for _ in routes] for way, routes in ways.items()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    token = start[:, -1:]
    for i in range(count + 2):  # the second is recorded
        for way, routes in ways.items():
            began = time.perf_counter()
            for place, route in enumerate(routes):
                hidden, after = decoder(decoder.embed(token, route), sessions[way][place], route=route)
                decoder.logits(hidden[:, -1:], route).argmax(-1).item()
                sessions[way][place] = after
            if i >= 2:
                times[way].append((time.perf_counter() - began) / len(routes))
    medians = {way: statistics.median(each) for way, each in times.items()}
    for way, seconds in medians.items():
        print(
            f"  {way:18}{1 / seconds:8.1f} tok/s {seconds * 1e3:8.3f} ms  {seconds / medians['none']:.2f}x", flush=True
        )


@torch.inference_mode()
def switches(rank: int) -> None:
    """Prints what loading, switching and opening a session takes on the bundled model."""
    engine = fluvial.load("pebble")
    model, plugins = engine.model, engine.plugins
    before = {name: tensor.data_ptr() for name, tensor in model.decoder.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in enumerate(NAMES):
            began = time.perf_counter()
            info = plugins.load(write(Path(folder) / name, model, rank, seed))
            seconds = time.perf_counter() - began
            print(f"load {name}: {len(info.targets)} matrices, {info.parameters:,} values, {seconds * 1e3:.0f} ms")
        session = engine.session()
        turns = iter(range(1 << 62))
        print(f"switch, one plugin      {median_us(lambda: session.use(NAMES[next(turns) % 3])):8.1f} us")
        print(f"switch, blend of three  {median_us(lambda: session.use(dict.fromkeys(NAMES, 0.3))):8.1f} us")
        print(f"switch, to the base     {median_us(lambda: session.use(None)):8.1f} us")
        print(f"open a session          {median_us(lambda: engine.session(plugin='a')):8.1f} us")
        for name in NAMES:
            plugins.unload(name)
    assert before == {name: tensor.data_ptr() for name, tensor in model.decoder.state_dict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--sizes", nargs="*", default=[], choices=list(CONFIGS))
    parser.add_argument("--recipe", default="int4", help="of the published sizes")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    chips.load()
    if not options.sizes:
        switches(options.rank)
    for name in options.sizes or ["pebble"]:
        decoder = (
            fluvial.load(name).model.decoder
            if name == "pebble"
            else built(CONFIGS[name], options.recipe, torch.float32)
        )
        size = attach(decoder, options.rank)
        print(f"{name}, rank {options.rank}, {size / 1e6:.1f} M values a plugin, {options.threads} threads")
        tokens(decoder, options.tokens)


if __name__ == "__main__":
    main()
