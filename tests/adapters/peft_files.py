"""Plugins as PEFT writes them, with random tensors; and the same change merged into a checkpoint's weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fluvial.adapters.pth import opened

PREFIX = "base_model.model."
PLAIN: dict[str, Any] = {  # what PEFT 0.21 writes where nothing was asked for
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "someone/base",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 6,
    "lora_bias": False,
    "lora_dropout": 0.0,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 3,
    "rank_pattern": {},
    "revision": None,
    "target_modules": "all-linear",
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def write(folder: Path, tensors: Mapping[str, Tensor], **options: Any) -> Path:
    """A plugin's folder; `tensors` by published names, without PEFT's prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({PREFIX + n: t.contiguous().clone() for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | options))
    return folder


def noise(*shape: int, seed: int, scale: float = 0.1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def pair(module: str, d_out: int, d_in: int, rank: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """LoRA tensors of a projection."""
    A, B = noise(rank, d_in, seed=2 * seed), noise(d_out, rank, seed=2 * seed + 1, scale=0.3)
    return {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}


def table(module: str, vocab: int, d_model: int, rank: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """LoRA tensors of an embedding."""
    A, B = noise(rank, vocab, seed=2 * seed), noise(d_model, rank, seed=2 * seed + 1, scale=0.3)
    return {f"{module}.lora_embedding_A": A, f"{module}.lora_embedding_B": B}


def published(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors."""
    return {name: tensor.clone() for name, tensor in opened(folder).tensors()}


def checkpoint(source: Path, target: Path, tensors: Mapping[str, Tensor]) -> Path:
    """A copy of a checkpoint with other tensors."""
    target.mkdir()
    for path in source.glob("*.json"):
        shutil.copy(path, target)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, target / "model.safetensors")
    return target
