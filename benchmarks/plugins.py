"""What plugins cost on the bundled model: switching between them, and a token with them. Medians, one thread.

python benchmarks/plugins.py --rank 8

Random LoRA on every projection. A switch is all that happens when a session or a question names another plugin; the
base's weights stay where they are (their addresses are compared).
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
from safetensors.torch import save_file

import fluvial
from fluvial.adapters.linear import Embedding, Linear

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


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="pebble")
    parser.add_argument("--rank", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = fluvial.load(options.model)
    model, plugins = engine.model, engine.plugins
    before = {name: tensor.data_ptr() for name, tensor in model.decoder.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in enumerate(NAMES):
            began = time.perf_counter()
            info = plugins.load(write(Path(folder) / name, model, options.rank, seed))
            seconds = time.perf_counter() - began
            print(f"load {name}: {len(info.targets)} matrices, {info.parameters:,} values, {seconds * 1e3:.0f} ms")
        session = engine.session()
        turns = iter(range(1 << 62))
        print(f"switch, one plugin      {median_us(lambda: session.use(NAMES[next(turns) % 3])):8.1f} us")
        print(f"switch, blend of three  {median_us(lambda: session.use(dict.fromkeys(NAMES, 0.3))):8.1f} us")
        print(f"switch, to the base     {median_us(lambda: session.use(None)):8.1f} us")
        print(f"open a session          {median_us(lambda: engine.session(plugin='a')):8.1f} us")
        ids = torch.tensor([[7]])
        state = model(ids)[1]
        plain = median_us(lambda: model(ids, state))
        print(f"a token, base           {plain:8.1f} us")
        for label, choice in (("one plugin", "a"), ("a blend of three", dict.fromkeys(NAMES, 0.3))):
            route = plugins.route(choice)
            each = median_us(lambda route=route: model(ids, state, route=route))
            print(f"a token, {label:15}{each:8.1f} us  {each / plain:.2f}x")
        for name in NAMES:
            plugins.unload(name)
    assert before == {name: tensor.data_ptr() for name, tensor in model.decoder.state_dict().items()}


if __name__ == "__main__":
    main()
