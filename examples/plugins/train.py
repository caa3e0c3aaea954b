"""Trains one plugin on a frozen pebble, in a few minutes of one CPU thread.

    python -m examples.plugins.train json                      # for the recurrent default
    python -m examples.plugins.train json --variant transformer

Fresh pictures, videos and texts at every step, drawn from seeds [seed, 6, step]. Only the plugin's tensors have
gradients.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from examples.pebble.evaluate import wrapped
from examples.pebble.tokens import USER
from examples.plugins import lora, site, start
from examples.plugins.data import batch, site_batch
from examples.plugins.forms import FORMS
from fluvial.engine.model import load_model

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"delta": "pebble", "transformer": "pebble/transformer"}
KEY = "training"  # what the route names while a plugin is trained
WARMUP = 20


@dataclass(frozen=True)
class Recipe:
    """How long and how fast."""

    steps: int
    rate: float


RECIPES = {"json": Recipe(180, 4e-3), "record": Recipe(110, 5e-3), "site": Recipe(100, 2e-3)}


def place(name: str, variant: str) -> Path:
    """Where a trained plugin is shipped: beside its model, so that `--plugin NAME` finds it."""
    return ROOT / "models" / "pebble" / variant / "plugins" / name


def rate(step: int, steps: int) -> float:
    """Share of the full learning rate: warm-up, then a linear decay."""
    return min((step + 1) / WARMUP, 1 - step / steps)


def train(name: str, variant: str, steps: int, seed: int) -> tuple[Mapping[str, Tensor], str]:
    """The plugin's trained tensors by name, and the base's name."""
    recipe = RECIPES[name]
    torch.manual_seed(seed)
    base = load_model(NAMES[variant])
    model, tokenizer = wrapped(base), Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    model.requires_grad_(False)
    if name in FORMS:
        tensors = lora.attach(model.decoder, KEY)
    else:
        tensors = start.attach(model.decoder, KEY, torch.tensor([[USER, *tokenizer.encode(site.TEXT).ids]]))
    optimizer = torch.optim.AdamW(tensors.values(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)
    began = time.thread_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * rate(step, steps)
        rng = np.random.default_rng([seed, 6, step])
        drawn = batch(rng, tokenizer, FORMS[name]) if name in FORMS else site_batch(rng, tokenizer)
        with torch.autocast("cpu", torch.bfloat16):
            loss, right = model.loss(drawn, {KEY: 1.0})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tensors.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 19 or step == steps - 1:
            spent = time.thread_time() - began
            print(f"step {step + 1:4d}  {spent:4.0f} s  loss {loss:.3f}  answer tokens right {right:.3f}", flush=True)
    return tensors, base.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--variant", choices=NAMES, default="delta")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--to", type=Path, help="another folder than the model's own")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder, steps = args.to or place(args.name, args.variant), args.steps or RECIPES[args.name].steps
    tensors, base = train(args.name, args.variant, steps, args.seed)
    (lora if args.name in FORMS else start).write(folder, tensors, base)
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
