"""Stages (b) and (c): a decoder learns to answer; the tower's trunk joins at a tenth of the rate after `--unfreeze`.

    python -m examples.pebble.train_vision --out runs/vision.pt --seconds 600
    python -m examples.pebble.train --variant delta --vision runs/vision.pt --out runs/delta --minutes 120

Resumes by itself from `--out`. Progress is CPU time, so that other work beside it costs no learning. Two
processes of one thread each beat one of two threads: `torchrun --nproc-per-node 2 -m examples.pebble.train ...`
splits every batch, and averages the weights every few steps (local SGD, Stich 2019).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tokenizers import Tokenizer

from examples.pebble import variants
from examples.pebble.evaluate import accuracy
from examples.pebble.export import training_names
from examples.pebble.memory import idle_loss
from examples.pebble.mixture import Sizes, mixture, text_length
from examples.pebble.model import Pebble
from examples.pebble.optim import Optimizers
from examples.pebble.tokens import train_tokenizer

EVERY = 1500  # CPU seconds between two evaluations
TOGETHER = 8  # steps after which the processes average their weights: the fewer, the more they wait for each other
TRUNK = ("conv1", "norm1", "conv2", "norm2", "conv3", "blocks", "rows", "columns")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=sorted(variants.BLOCKS), default="delta")
    parser.add_argument("--vision", type=Path, help="tower from train_vision")
    parser.add_argument(
        "--sibling", type=Path, nargs="+", default=[], help="published folders to start from: every tensor that fits"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=120, help="of CPU time in each process")
    parser.add_argument("--unfreeze", type=float, default=0.3, help="share of the run after which the trunk trains too")
    parser.add_argument("--level", type=float, default=0.0, help="head start in the curriculum")
    for name, size in vars(Sizes()).items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--rate", type=float, default=1.0, help="of learning, as a share of the full one")
    parser.add_argument("--trunk-rate", type=float, default=0.1, help="the trunk's, as a share of the rest's")
    parser.add_argument("--only", default="", help="pattern of the tensors to train, where the rest shall stay")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    team = Team()
    sizes = Sizes(**{name: getattr(args, name) // team.size for name in vars(Sizes())})
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
    rates = 4e-3 * args.rate, 2e-3 * args.rate  # Muon's, AdamW's
    main_optimizer = Optimizers([model.decoder, *tail], *rates)
    trunk_optimizer = Optimizers(trunk, *(rate * args.trunk_rate for rate in rates))
    main_optimizer.add([model.vision.rows_out, model.vision.columns_out])
    trunk_optimizer.add([model.vision.rows, model.vision.columns])
    in_trunk = set(trunk_optimizer.parameters)
    step, spent, cpu = 0, 0.0, 0.0
    last = args.out / "last.pt"
    if last.exists():
        saved = torch.load(last, weights_only=True)
        model.load_state_dict(saved["model"])
        main_optimizer.load(saved["main"])
        trunk_optimizer.load(saved["trunk"])
        step, spent, cpu = saved["step"], saved["spent"], saved["cpu"]
    log = (args.out / "log.jsonl").open("a")
    began, cpu_began, since_eval = time.monotonic() - spent, time.process_time() - cpu, cpu
    figures: dict[str, list[float]] = defaultdict(list)
    while True:
        if step % TOGETHER == 0:
            team.average(model)
            cpu, spent = team.agree(time.process_time() - cpu_began), time.monotonic() - began
        progress = cpu / (60 * args.minutes)
        if progress >= 1:
            break
        rng = np.random.default_rng([args.seed, 2, step, team.rank])
        level = min(1.0, (args.level + progress) / 0.35)
        length = text_length(np.random.default_rng([args.seed, 5, step]), level)  # the same on every process
        frozen = progress < args.unfreeze
        for name, p in model.named_parameters():
            p.requires_grad_(re.search(args.only, name) is not None and not (frozen and p in in_trunk))
        main_optimizer.schedule(progress, step)
        trunk_optimizer.schedule(progress, step)
        for name, (batch, weight) in mixture(rng, tokenizer, level, sizes, step, length).items():
            with torch.autocast("cpu", torch.bfloat16):
                loss, right = model.loss(batch) if batch.idle is None else idle_loss(model, batch)
            (weight * loss).backward()
            figures[f"{name}_loss"].append(loss.item())
            figures[f"{name}_right"].append(right.item())
        main_optimizer.step()
        if not frozen:
            trunk_optimizer.step()
        step += 1
        if step % 25 == 0 and team.rank == 0:
            recent = " ".join(f"{name} {np.mean(values[-25:]):.3f}" for name, values in figures.items())
            print(f"step {step} {spent / 60:.1f} min {recent}", flush=True)
        if step % 24 == 0 and team.rank == 0:
            save(last, model, main_optimizer, trunk_optimizer, step, spent, cpu)
        if cpu - since_eval > EVERY and team.rank == 0:
            since_eval = cpu
            row = {"step": step, "minutes": round(spent / 60, 1), "cpu_s": round(cpu), "level": round(level, 2)}
            row |= {name: round(float(np.mean(values)), 4) for name, values in figures.items()}
            row["held_out"] = accuracy(model, tokenizer, seed=900, pictures=20)
            print(json.dumps(row), file=log, flush=True)
            figures.clear()
    if team.rank == 0:
        save(last, model, main_optimizer, trunk_optimizer, step, spent, cpu)


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

    @torch.no_grad()
    def average(self, model: Pebble) -> None:
        """Averages the weights over the team."""
        if self.size > 1:
            weights = list(model.parameters())
            flat = torch.cat([w.flatten() for w in weights])
            dist.all_reduce(flat)
            for w, part in zip(weights, (flat / self.size).split([w.numel() for w in weights]), strict=True):
                w.copy_(part.view_as(w))


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
