"""A training checkpoint as a published folder: config, bf16 weights, tokenizer, template, processor, model card.

python -m examples.pebble.export runs/delta --variant delta --to models/pebble/delta
python -m examples.pebble.export runs/delta --variant delta --to models/pebble/delta --blend models/pebble/delta
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from examples.pebble import variants
from examples.pebble.tokens import write_tokenizer

GATES = r"mixer\.(in_proj_[ab]|A_log|dt_bias)$"  # what a memory writes and keeps
WIDE = ("A_log", "dt_bias")  # decay gates stay in fp32


def published(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Training names to names on disk, in bf16 but for the decay gates."""
    tensors = {}
    for name, tensor in model.items():
        part, rest = name.split(".", 1)
        wide = rest.rpartition(".")[2] in WIDE
        tensors[{"decoder": "model", "vision": "vision"}[part] + "." + rest] = (
            tensor.float() if wide else tensor.bfloat16()
        ).contiguous()
    return tensors


def training_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `published` gave, under training's names, in fp32."""
    parts = {"model": "decoder", "vision": "vision"}
    split = {name: name.split(".", 1) for name in tensors}
    return {f"{parts[part]}.{rest}": tensors[name].float() for name, (part, rest) in split.items()}


def blended(run: dict[str, Tensor], older: dict[str, Tensor], share: float, alone: str) -> dict[str, Tensor]:
    """`share` of the older weights and the rest of the run's: what a short run unlearned comes back, most of what it
    learned stays (Wortsman et al. 2022). Tensors whose name has the pattern `alone` are the run's."""
    return {name: t if re.search(alone, name) else torch.lerp(t, older[name], share) for name, t in run.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--variant", choices=sorted(variants.BLOCKS), required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--blend", type=Path, help="a published folder to take a share of")
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--alone", default=GATES, help="pattern of the tensors that are the run's alone")
    args = parser.parse_args()
    saved = torch.load(args.run / "last.pt", weights_only=True, map_location="cpu")
    if args.blend:
        older = training_names(load_file(args.blend / "model.safetensors"))
        saved["model"] = blended(saved["model"], older, args.share, args.alone)
    write_tokenizer(Tokenizer.from_file(str(args.run.parent / "tokenizer.json")), args.to)
    save_file(published(saved["model"]), args.to / "model.safetensors", metadata={"format": "pt"})
    (args.to / "config.json").write_text(json.dumps(variants.config(args.variant), indent=2) + "\n")
    size = (args.to / "model.safetensors").stat().st_size
    print(f"{args.to}: {size / 1e6:.1f} MB after {saved['step']} steps, {saved['cpu'] / 60:.0f} CPU minutes")


if __name__ == "__main__":
    main()
