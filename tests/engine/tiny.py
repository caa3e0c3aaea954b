"""A random checkpoint of each pebble variant, saved as published: for tests that must not depend on trained words."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch

from examples.pebble import variants
from examples.pebble.export import published
from examples.pebble.model import Pebble
from examples.pebble.tokens import train_tokenizer, write_tokenizer
from fluvial.encoders.frame import Frame
from fluvial.engine.model import Model, load_model

VARIANTS = sorted(variants.BLOCKS)


def write_model(folder: Path, variant: str) -> Path:
    """A random-weight pebble with a tokenizer trained in a moment."""
    from safetensors.torch import save_file

    torch.manual_seed(11)
    model = Pebble(variant)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.02
    write_tokenizer(_tokenizer(), folder)
    save_file(published(model.state_dict()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(variants.config(variant)))
    return folder


@cache
def _tokenizer():
    return train_tokenizer(variants.VOCAB, lines=3000)


@cache
def tiny(variant: str) -> Model:
    """The loaded model, in fp64 so that equal computations give equal words."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return load_model(write_model(Path(folder), variant), dtype="fp64")


def picture(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Random blocks of colour, uint8 [H, W, 3]."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    return blocks.repeat(16, 0).repeat(16, 1)


def frames(n: int, seed: int = 0) -> list[Frame]:
    return [Frame(picture(seed + i), t=i / 2, index=i) for i in range(n)]
