"""Stages (b) and (c): a decoder learns to answer; the tower's trunk joins at a tenth of the rate after `--unfreeze`.

    python -m examples.pebble.train_vision --out runs/vision.pt --seconds 600
    python -m examples.pebble.train --variant delta --vision runs/vision.pt --out runs/delta --minutes 120

Resumes by itself from `--out`. Progress is wall time, so that a run ends when it should on any machine. Two
processes of one thread each beat one of two threads: `torchrun --nproc-per-node 2 -m examples.pebble.train ...`
splits every batch.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tokenizers import Tokenizer

from examples.pebble import variants
from examples.pebble.batches import media_batch, text_batch, text_length
from examples.pebble.evaluate import accuracy
from examples.pebble.export import training_names
from examples.pebble.model import Pebble
from examples.pebble.optim import Optimizers
from examples.pebble.tokens import train_tokenizer

TRUNK = ("conv1", "norm1", "conv2", "norm2", "conv3", "blocks", "rows", "columns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=sorted(variants.BLOCKS), default="delta")
    parser.add_argument("--vision", type=Path, help="tower from train_vision")
    parser.add_argument(
        "--sibling", type=Path, nargs="+", default=[], help="published folders to start from: every tensor that fits"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--unfreeze", type=float, default=0.3, help="share of the run after which the trunk trains too")
    parser.add_argument("--level", type=float, default=0.0, help="head start in the curriculum")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--text-tokens", type=int, default=1536)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    team = Team()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = shared_tokenizer(args.out.parent / "tokenizer.json")
    model = Pebble(args.variant)
    if args.vision:
        model.vision.load_state_dict(torch.load(args.vision, weights_only=True))
    for folder in args.sibling:  # where several have a tensor, the last one's
        sibling = training_names(load_file(folder / "model.safetensors"))
        mine = model.state_dict()
        taken = {n: t for n, t in sibling.items() if n in mine and t.shape == mine[n].shape}
        model.load_state_dict(taken, strict=False)
        print(f"{len(taken)} of {len(mine)} tensors from {folder}")
    trunk = [module for name, module in model.vision.named_children() if name in TRUNK]
    tail = [module for name, module in model.vision.named_children() if name not in TRUNK]
    main_optimizer, trunk_optimizer = Optimizers([model.decoder, *tail], 4e-3, 2e-3), Optimizers(trunk, 4e-4, 2e-4)
    main_optimizer.add([model.vision.rows_out, model.vision.columns_out])
    trunk_optimizer.add([model.vision.rows, model.vision.columns])
    step, spent, cpu = 0, 0.0, 0.0
    last = args.out / "last.pt"
    if last.exists():
        saved = torch.load(last, weights_only=True)
        model.load_state_dict(saved["model"])
        main_optimizer.load(saved["main"])
        trunk_optimizer.load(saved["trunk"])
        step, spent, cpu = saved["step"], saved["spent"], saved["cpu"]
    log = (args.out / "log.jsonl").open("a")
    began, cpu_began, since_eval, sums = (
        time.monotonic() - spent,
        time.process_time() - cpu,
        time.monotonic(),
        np.zeros(5),
    )
    while True:
        spent = time.monotonic() - began
        progress = team.agree(spent / (60 * args.minutes))
        if progress >= 1:
            break
        rng = np.random.default_rng([args.seed, 2, step, team.rank])
        level = min(1.0, (args.level + progress) / 0.35)
        length = text_length(np.random.default_rng([args.seed, 5, step]), level)  # the same on every process
        frozen = progress < args.unfreeze
        for p in trunk_optimizer.parameters:
            p.requires_grad_(not frozen)
        main_optimizer.schedule(progress, step)
        trunk_optimizer.schedule(progress, step)
        figures = []
        for batch, weight in (
            (media_batch(rng, tokenizer, level, args.images // team.size, args.videos // team.size), 1.0),
            (text_batch(rng, tokenizer, level, args.text_tokens // team.size, length), 0.5),
        ):
            with torch.autocast("cpu", torch.bfloat16):
                loss, right = model.loss(batch)
            (weight * loss).backward()
            figures += [loss.item(), right.item()]
        team.average(main_optimizer.parameters + ([] if frozen else trunk_optimizer.parameters))
        main_optimizer.step()
        if not frozen:
            trunk_optimizer.step()
        sums += [*figures, 1]
        step += 1
        if step % 25 == 0 and team.rank == 0:
            print(f"step {step} {spent / 60:.1f} min media {figures[0]:.3f} text {figures[2]:.3f}", flush=True)
        if team.agree(time.monotonic() - since_eval) > 600:
            since_eval = time.monotonic()
            if team.rank:
                continue
            cpu = time.process_time() - cpu_began
            row = {"step": step, "minutes": round(spent / 60, 1), "cpu_s": round(cpu), "level": round(level, 2)}
            row |= dict(
                zip(
                    ("media_loss", "media_right", "text_loss", "text_right"), (sums[:4] / sums[4]).round(4), strict=True
                )
            )
            row["held_out"] = accuracy(model, tokenizer, seed=900, pictures=20)
            print(json.dumps(row), file=log, flush=True)
            save(last, model, main_optimizer, trunk_optimizer, step, spent, cpu)
            sums = np.zeros(5)
    if team.rank == 0:
        save(last, model, main_optimizer, trunk_optimizer, step, spent, time.process_time() - cpu_began)


class Team:
    """The processes that share one run (torchrun's); a team of one otherwise."""

    def __init__(self) -> None:
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if self.size > 1:
            dist.init_process_group("gloo")

    def agree(self, value: float) -> float:
        """The first process's number, on all of them."""
        if self.size > 1:
            shared = torch.tensor(value, dtype=torch.float64)
            dist.broadcast(shared, 0)
            return float(shared)
        return value

    def average(self, parameters: list[torch.nn.Parameter]) -> None:
        """Averages the gradients over the team."""
        if self.size > 1:
            grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
            flat = torch.cat([g.flatten() for g in grads])
            dist.all_reduce(flat)
            for p, part in zip(parameters, (flat / self.size).split([g.numel() for g in grads]), strict=True):
                p.grad = part.view_as(p)


def shared_tokenizer(path: Path) -> Tokenizer:
    """The family's tokenizer, trained once."""
    if not path.exists():
        train_tokenizer(variants.VOCAB).save(str(path))
    return Tokenizer.from_file(str(path))


def save(path: Path, model: Pebble, main: Optimizers, trunk: Optimizers, step: int, spent: float, cpu: float) -> None:
    """Everything to go on from here, written atomically."""
    temporary = path.with_suffix(".tmp")
    torch.save(
        {
            "model": model.state_dict(),
            "main": main.state(),
            "trunk": trunk.state(),
            "step": step,
            "spent": spent,
            "cpu": cpu,
        },
        temporary,
    )
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
