"""A folder with random weights of a published size that reads text and frames: pebble's tokenizer and a tower like its
own in front of the decoder that a config.json describes.

    python -m benchmarks.seeing benchmarks/shapes/rwkv7-0.4b.json rwkv7-0.4b
    python benchmarks/soak.py rwkv7-0.4b --dtype bf16 --json benchmarks/soak/rwkv7-0.4b.json
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from examples.pebble.export import published
from fluvial.encoders.pebble import PebbleVision, PebbleVisionConfig
from fluvial.engine.resolve import resolve
from fluvial.models import checkpoints
from fluvial.models.decoder import Decoder


def write(shape: Path, folder: Path) -> None:
    """The folder, in bf16. Its config lists the blocks that the shape comes to."""
    described = checkpoints.identified(json.loads(shape.read_text("utf-8")))
    config = checkpoints.family(described["model_type"]).decoder_config(described)
    config = replace(config, tied_head=True, embed_norm=False)  # what pebble's layout can say
    torch.manual_seed(1)
    parts = {"decoder": Decoder(config), "vision": PebbleVision(PebbleVisionConfig(config.d_model))}
    shutil.copytree(resolve("pebble"), folder, ignore=lambda _, names: [n for n in names if "safetensors" in n])
    shutil.rmtree(folder / "plugins")
    tensors = {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}
    save_file(published(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    text = {"vocab_size": config.vocab, "hidden_size": config.d_model, "norm": config.norm, "norm_eps": config.norm_eps}
    text |= {"blocks": [{"kind": b.kind, **b.options} for b in config.blocks], "tie_word_embeddings": True}
    bundled = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(bundled | {"text_config": text}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", type=Path, help="a config.json")
    parser.add_argument("folder", type=Path, help="which must not exist yet")
    args = parser.parse_args()
    write(args.shape, args.folder)
    print(f"{args.folder}: {(args.folder / 'model.safetensors').stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
