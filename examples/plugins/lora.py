"""LoRA on a decoder's projections while it is trained, and the folder that PEFT would write of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fluvial.adapters.linear import Linear
from fluvial.adapters.lora import LoraPair
from fluvial.models.decoder import Decoder

RANK, ALPHA = 4, 8
NARROW = 16  # outputs: gates of a few heads are left alone


def attach(decoder: Decoder, key: str) -> dict[str, Tensor]:
    """Puts a pair that changes nothing yet on every wide projection of the blocks; its tensors by PEFT's names."""
    tensors: dict[str, Tensor] = {}
    for name, door in decoder.blocks.named_modules():
        if isinstance(door, Linear) and door.d_out >= NARROW:
            A = torch.empty(RANK, door.d_in).uniform_(-1, 1).mul_(door.d_in**-0.5).requires_grad_()
            B = torch.zeros(door.d_out, RANK).requires_grad_()
            door.attach(key, LoraPair(A, B, ALPHA / RANK))
            module = f"model.blocks.{name}"
            tensors |= {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
    return tensors


def write(folder: Path, tensors: Mapping[str, Tensor], base: str) -> None:
    """adapter_config.json and adapter_model.safetensors, in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    narrow = {f"base_model.model.{name}": tensor.detach().bfloat16() for name, tensor in tensors.items()}
    save_file(narrow, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
