"""A recurrent model's initial state while it is trained (state tuning), and its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fluvial.adapters.errors import UnsupportedError
from fluvial.engine import state_plugin
from fluvial.models.decoder import Decoder


def attach(decoder: Decoder, key: str, ids: Tensor) -> dict[str, Tensor]:
    """Lets sessions begin in the state after some tokens, int64 [1, T]; its leaves by name.

    Raises `UnsupportedError` for a model of attention only, which has no state to begin in."""
    names = state_plugin.recurrent(decoder)
    if not names:
        raise UnsupportedError("A state plugin needs a recurrent model.", hint="Train a LoRA plugin.")
    with torch.no_grad():
        read = decoder(decoder.embed(ids))[1].leaves
    leaves: dict[str, Tensor] = {}
    for name in names:
        leaf = read[name]
        assert isinstance(leaf, Tensor)
        leaves[name] = leaf.clone().requires_grad_()
    decoder.starts[key] = leaves
    return leaves


def write(folder: Path, tensors: Mapping[str, Tensor], base: str) -> None:
    """initial_state.safetensors, in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    narrow = {name: tensor.detach().bfloat16() for name, tensor in tensors.items()}
    state_plugin.write(folder / state_plugin.FILE, narrow, base=base)
