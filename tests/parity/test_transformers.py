"""The text Transformers against Transformers: every published variation of positions, biases, windows and heads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fluvial.adapters.errors import FluvialError, UnsupportedError
from fluvial.models import checkpoints
from tests.parity.reference import check_family, error, load, logits, perturbed, tokens

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"factor": 2.0, "original_max_position_embeddings": 64, "beta_fast": 4.0, "beta_slow": 0.25}


def _rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **options}}


WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied-wide": ("llama", {"tie_word_embeddings": True, "head_dim": 24, "num_key_value_heads": 1}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    "llama-llama3": ("llama", _rope("llama3", **LLAMA3)),
    "llama-linear": ("llama", _rope("linear", factor=3.0)),
    "llama-yarn": ("llama", _rope("yarn", **YARN)),
    "llama-yarn-plain": ("llama", _rope("yarn", factor=2.0, mscale=0.7, mscale_all_dim=0.3, truncate=False)),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", {**WINDOW, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-window": ("qwen3", {**WINDOW, "head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}),
    "smollm3-window": (
        "smollm3",
        {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 5, "attention_bias": True},
    ),
}


def reference(variant: str) -> nn.Module:
    """The reference's model of a variant, every parameter perturbed."""
    import transformers

    model_type, options = VARIANTS[variant]
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, **options})
    torch.manual_seed(7)
    return perturbed(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """variant -> (the reference model, its published folder), made once a session."""
    cache: dict[str, tuple[nn.Module, Path]] = {}

    def make(variant: str) -> tuple[nn.Module, Path]:
        if variant not in cache:
            model, folder = reference(variant), tmp_path_factory.mktemp("parity") / variant
            model.save_pretrained(folder)  # type: ignore[operator]
            cache[variant] = model, folder
        return cache[variant]

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_parity(made: Any, variant: str) -> None:
    model, folder = made(variant)
    check_family(model, folder)


def _rewritten(folder: Path, target: Path, change: dict[str, Any], drop: tuple[str, ...] = ()) -> Path:
    """A copy of a checkpoint whose config says other things (None: nothing)."""
    target.mkdir()
    (target / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **change}.items() if key not in drop}
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_old_spellings_of_rope_mean_the_same(made: Any, tmp_path: Path, key: str) -> None:
    _, folder = made("llama-llama3")
    old = {"rope_theta": 500.0, "rope_scaling": {key: "llama3", **LLAMA3}}
    same = load(_rewritten(folder, tmp_path / "old", old, drop=("rope_parameters",)))
    assert same.config == load(folder).config


def test_what_a_config_leaves_out_has_the_family_default(made: Any, tmp_path: Path) -> None:
    for variant in ("llama", "qwen2", "smollm3"):
        _, folder = made(variant)
        drop = ("rope_parameters", "tie_word_embeddings", "no_rope_layers", "layer_types", "hidden_act", "head_dim")
        short = _rewritten(folder, tmp_path / variant, {}, drop=(*drop, "attention_bias", "mlp_bias", "rms_norm_eps"))
        assert load(short).config == load(folder).config, variant


def test_old_and_redundant_tensors_are_known(made: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    _, folder = made("llama-tied-wide")
    target = _rewritten(folder, tmp_path / "more", {})
    tensors = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(12)
    (target / "model.safetensors").unlink()
    save_file(tensors, target / "model.safetensors")
    ids = tokens(SMALL["vocab_size"])
    assert torch.equal(logits(load(target), ids)[0], logits(load(folder), ids)[0])


def test_long_positions_stay_exact(made: Any) -> None:
    """Past the trained length, and where fp32 angles would have lost digits."""
    model, folder = made("llama-llama3")
    ids = tokens(SMALL["vocab_size"], 400)
    with torch.no_grad():
        expected = model(ids).logits
    assert error(logits(load(folder), ids)[0], expected) < 1e-4


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"hidden_act": "gelu"}, "gelu"),
    ("llama", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "dynamic"),
    ("llama", {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}, "mrope_section"),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "wobble": 1}}, "wobble"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("qwen2", {"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "chunked_attention"),
    ("qwen3", {"quantization_config": {"quant_method": "gptq"}}, "gptq"),
]


@pytest.mark.parametrize(("family", "change", "word"), REFUSED, ids=[word for _, _, word in REFUSED])
def test_what_is_not_implemented_is_refused_by_name(
    made: Any, tmp_path: Path, family: str, change: dict[str, Any], word: str
) -> None:
    with pytest.raises(UnsupportedError, match=word):
        load(_rewritten(made(family)[1], tmp_path / "odd", change))


def test_shared_parts_are_no_families() -> None:
    assert {"llama", "qwen2", "qwen3", "smollm3", "pebble"} <= set(checkpoints.supported())
    with pytest.raises(FluvialError, match="_transformer"):
        checkpoints.family("_transformer")
