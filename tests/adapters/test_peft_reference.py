"""Plugins that PEFT itself made and saved: loaded here they say what PEFT says with them.

Every option that changes the result, on a Transformer with biases, on tied heads, and on mixers of other kinds. Left
out where PEFT is not installed; `test_peft.py` has the rules by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fluvial.adapters import peft as ours
from fluvial.engine.loading import load_parts
from fluvial.engine.plugins import modules_of
from tests.parity import test_hybrids, test_mamba, test_transformers
from tests.parity.reference import error, tokens

transformers = pytest.importorskip("transformers")
theirs: Any = pytest.importorskip("peft")

ATTENTION, MLP = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
BASES: dict[str, Callable[[], Any]] = {
    "llama-biases": lambda: test_transformers.reference("llama-biases"),
    "llama-tied-wide": lambda: test_transformers.reference("llama-tied-wide"),
    "granitemoehybrid": test_hybrids.FAMILIES["granitemoehybrid"],
    "olmo_hybrid-nope": test_hybrids.FAMILIES["olmo_hybrid-nope"],
    "falcon_h1": test_hybrids.FAMILIES["falcon_h1"],
    "lfm2": test_hybrids.FAMILIES["lfm2"],
    "mamba2": test_mamba.FAMILIES["mamba2"],
    "mamba": test_mamba.FAMILIES["mamba"],
}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "list": ("llama-biases", {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 5}),
    "all-linear": ("llama-biases", {"target_modules": "all-linear"}),
    "regex": ("llama-biases", {"target_modules": r".*\.(0|2)\..*(up|q)_proj"}),
    "patterns": (
        "llama-biases",
        {
            "target_modules": [*ATTENTION, *MLP],
            "rank_pattern": {"q_proj": 5, r"layers\.1\.mlp\.(up|down)_proj": 2},
            "alpha_pattern": {"up_proj": 1, r"^model\.layers\.0\.self_attn\.q_proj": 32},
        },
    ),
    "rslora": (
        "llama-biases",
        {"target_modules": "all-linear", "use_rslora": True, "alpha_pattern": {"v_proj": 2}, "r": 4},
    ),
    "dora": ("llama-biases", {"target_modules": "all-linear", "use_dora": True}),
    "bias": ("llama-biases", {"target_modules": ["q_proj", "down_proj"], "bias": "all"}),
    "bias-lora-only": ("llama-biases", {"target_modules": ["o_proj", "gate_proj"], "bias": "lora_only"}),
    "dora-bias": ("llama-biases", {"target_modules": ["o_proj"], "bias": "lora_only", "use_dora": True}),
    "lora-bias": ("llama-biases", {"target_modules": ["o_proj", "up_proj"], "lora_bias": True, "use_rslora": True}),
    "layers": ("llama-biases", {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0, 2]}),
    "layers-pattern": (
        "llama-biases",
        {"target_modules": ["up_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    ),
    "exclude": ("llama-biases", {"target_modules": "all-linear", "exclude_modules": r".*layers\.1\..*"}),
    "exclude-list": (
        "llama-biases",
        {"target_modules": ATTENTION, "exclude_modules": ["q_proj", "layers.0.self_attn.k_proj"]},
    ),
    "head": ("llama-biases", {"target_modules": ["lm_head", "q_proj"]}),
    "saved": ("llama-biases", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
    "saved-mlp": ("llama-biases", {"target_modules": ATTENTION, "modules_to_save": ["layers.1.mlp"]}),
    "embedding": ("llama-biases", {"target_modules": ["embed_tokens", "lm_head"]}),
    "embedding-dora": ("llama-biases", {"target_modules": ["embed_tokens", "v_proj"], "use_dora": True}),
    "tied-embedding": ("llama-tied-wide", {"target_modules": ["embed_tokens", "up_proj"]}),
    "tied-head": ("llama-tied-wide", {"target_modules": ["lm_head", "up_proj"], "use_dora": True}),
    "tied-saved": ("llama-tied-wide", {"target_modules": ["up_proj"], "modules_to_save": ["embed_tokens"]}),
    "split": ("granitemoehybrid", {"target_modules": ["input_linear", "q_proj", "in_proj"], "r": 2}),
    "split-dora": ("granitemoehybrid", {"target_modules": ["input_linear", "output_linear"], "use_dora": True}),
    "delta": ("olmo_hybrid-nope", {"target_modules": "all-linear", "use_dora": True}),
    "parallel": ("falcon_h1", {"target_modules": ["q_proj", "k_proj", "in_proj", "gate_proj"]}),
    "short-conv": ("lfm2", {"target_modules": ["in_proj", "w1", "w2", "q_proj"], "use_rslora": True}),
    "mamba2": ("mamba2", {"target_modules": ["in_proj", "embeddings"], "use_dora": True}),
    "mamba": ("mamba", {"target_modules": ["in_proj", "x_proj"]}),  # Transformers multiplies past dt_proj's LoRA
    "mamba-bias": ("mamba", {"target_modules": ["in_proj"], "bias": "lora_only"}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("peft") / name
            BASES[name]().save_pretrained(made[name])
        return made[name]

    return make


def trained(folder: Path, target: Path, **options: Any) -> nn.Module:
    """A PEFT model on the checkpoint in `folder` whose trainable parameters are random, saved in `target`."""
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    model = theirs.get_peft_model(base, theirs.LoraConfig(**{"r": 3, "lora_alpha": 6, **options}))
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                size = 0.15 if "lora_" in name else 0.05
                parameter += torch.randn(parameter.shape, generator=draw) * size
    model.save_pretrained(target)
    return model.eval()


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_as_peft_does(name: str, bases: Any, tmp_path: Path) -> None:
    base, options = OPTIONS[name]
    folder = bases(base)
    reference = trained(folder, tmp_path, **options)
    parts, ids = load_parts(folder), tokens(96)
    plugin = ours.read(tmp_path, modules_of(parts.config, parts.decoder, parts.tower), torch.float32)
    plugin.attach("p")
    route, decoder = {"p": 1.0}, parts.decoder
    says = decoder.logits(decoder(decoder.embed(ids, route), route=route)[0], route)
    plain = decoder.logits(decoder(decoder.embed(ids))[0])
    wanted = reference(ids).logits
    print(f"peft  {name:16} {base:20} off by {error(says, wanted):.1e}, moves {error(plain, wanted):.1e}")
    assert error(says, wanted) <= 1e-5
    assert error(plain, wanted) > 1e-3
    assert not plugin.warnings
