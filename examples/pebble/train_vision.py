"""Stage (a): the vision tower learns what stands in every cell (shape, digit or capital; colour; motion of the
pair)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from examples.pebble import variants
from examples.pebble.model import pixels
from examples.pebble.optim import Optimizers
from examples.pebble.world import COLOUR_CLASSES, SHAPE_CLASSES, dense_labels, image_sample

MOVES = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))  # still, left, right, up, down as (rows, columns)
TASKS = ("describe", "count", "number", "word", "colour", "position")


def batch(rng: np.random.Generator, n: int, level: float) -> tuple[torch.Tensor, ...]:
    """Pictures uint8 [n, 2, H, W, 3] and labels [n, 64] each: shape, colour, motion."""
    pictures, shapes, colours, moves = [], [], [], []
    for _ in range(n):
        sample = image_sample(
            rng, level if rng.random() < 0.6 else float(rng.uniform(0, level)), 1, tasks=[rng.choice(TASKS)]
        )
        assert sample.image is not None
        shape, colour = dense_labels(sample, 8)
        move = int(rng.integers(1, 5)) if rng.random() < 0.4 else 0
        pixels_moved = int(rng.integers(5, 13))
        later = np.roll(sample.image, [d * pixels_moved for d in MOVES[move]], (0, 1))
        pictures.append(np.stack([sample.image, later]))
        shapes.append(shape.ravel())
        colours.append(colour.ravel())
        moves.append(np.where(shape.ravel() > 0, move, -100))
    return tuple(torch.from_numpy(np.stack(part)) for part in (pictures, shapes, colours, moves))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600, help="CPU seconds")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    tower = variants.vision()
    heads = nn.ModuleList(nn.Linear(variants.WIDTH, n) for n in (len(SHAPE_CLASSES), len(COLOUR_CLASSES), len(MOVES)))
    optimizers = Optimizers([tower, heads], muon_lr=4e-3, adam_lr=2e-3)
    rng, step, start = np.random.default_rng([args.seed, 1]), 0, time.process_time()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    while (spent := time.process_time() - start) < args.seconds:
        progress = spent / args.seconds
        optimizers.schedule(progress, step)
        pictures, *labels = batch(rng, args.batch, min(1.0, 0.2 + progress * 2))
        with torch.autocast("cpu", torch.bfloat16):
            hidden = tower(pixels(pictures).bfloat16())
            losses = []
            for head, label, weight in zip(heads, labels, (1.0, 1.0, 0.5), strict=True):
                logits = head(hidden).float()
                keep = (label != -100) & ((label > 0) | (torch.rand(label.shape) < 0.25))  # most cells are empty
                losses.append(weight * F.cross_entropy(logits[keep], label[keep]))
        sum(losses).backward()
        optimizers.step()
        if step % 50 == 0:
            shape, colour = (
                (head(hidden).argmax(-1) == label)[labels[0] > 0].float().mean().item()
                for head, label in zip(heads[:2], labels[:2], strict=True)
            )
            print(
                f"{spent:.0f} s step {step} loss {sum(losses).item():.3f} shape {shape:.3f} colour {colour:.3f}",
                flush=True,
            )
        if step % 200 == 0:
            torch.save(tower.state_dict(), args.out)
        step += 1
    torch.save(tower.state_dict(), args.out)


if __name__ == "__main__":
    main()
