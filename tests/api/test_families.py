"""Every published family through the command line: `models show` against the reference's count of parameters and the
state's size by hand, and a few words of noise from `run`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from fluvial.models import checkpoints
from tests.engine import small_tokenizers
from tests.parity.test_hybrids import as_published
from tests.parity.test_rwkv import LAYERS, RANKS, VOCAB, D, N, official

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SSM = {"mamba_n_heads": 8, "mamba_d_state": 6, "mamba_n_groups": 2, "mamba_d_head": 8}
LINEAR, FULL = "linear_attention", "full_attention"
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 6}
DELTA |= {"num_hidden_layers": 4, "head_dim": 8}
QWEN = {**SMALL, **DELTA, "layer_types": [LINEAR, LINEAR, LINEAR, FULL]}
MROPE = {"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
IDS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
VISION = {"depth": 2, "hidden_size": 24, "num_heads": 2, "intermediate_size": 40, "out_hidden_size": 32}
VISION |= {"num_position_embeddings": 16}
SIGLIP: dict[str, Any] = {"vision_use_head": False}
SIGLIP |= {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}


def kv(layers: int = 2, heads: int = 2, width: int = 8) -> int:
    """Bytes that so many attention layers add for a token."""
    return layers * 2 * heads * width * 4


def memory(layers: int, matrix: tuple[int, int, int], window: tuple[int, int]) -> int:
    """Bytes of so many recurrent layers: a matrix for each head, and the last inputs of a short convolution."""
    (heads, rows, columns), (channels, taps) = matrix, window
    return layers * 4 * (heads * rows * columns + channels * (taps - 1))


@dataclass(frozen=True)
class Case:
    """A small config and what is to be shown of it."""

    blocks: dict[str, int]
    tape: int = 0
    state: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ("text",)


TRANSFORMER, SSD = {"attention": 2, "swiglu": 2}, memory(1, (8, 8, 6), (64 + 2 * 2 * 6, 4))
HYBRID = {"gated_delta": 3, "swiglu": 4, "attention": 1}
DELTA_BYTES = memory(3, (4, 8, 6), (2 * 2 * 8 + 4 * 6, 4))
SEES, LOOKS = ("text", "image", "video"), ("text", "image")
CASES: dict[str, Case] = {
    "llama": Case(TRANSFORMER, kv()),
    "qwen2": Case(TRANSFORMER, kv()),
    "qwen3": Case(TRANSFORMER, kv(), config={"head_dim": 8}),
    "smollm3": Case(TRANSFORMER, kv()),
    "mamba": Case({"mamba": 2}, 0, memory(2, (48, 1, 6), (48, 4)), {"state_size": 6}),
    "falcon_mamba": Case({"mamba": 2}, 0, memory(2, (48, 1, 6), (48, 4)), {"state_size": 6}),
    "mamba2": Case({"mamba2": 2}, 0, 2 * SSD, {"num_heads": 8, "head_dim": 8, "state_size": 6, "n_groups": 2}),
    "lfm2": Case({"short_conv": 1, "swiglu": 2, "attention": 1}, kv(1), 2 * 32 * 4, {"layer_types": ["conv", FULL]}),
    "granitemoehybrid": Case(
        {"mamba2": 1, "swiglu": 2, "attention": 1},
        kv(1),
        SSD,
        {**SSM, "layer_types": [LINEAR, FULL], "num_local_experts": 0, "shared_intermediate_size": 40},
    ),
    "falcon_h1": Case({"mamba2 beside attention": 2, "swiglu": 2}, kv(), 2 * SSD, {**SSM, "mamba_d_ssm": 64}),
    "olmo_hybrid": Case(
        {"gated_delta": 1, "swiglu": 2, "attention": 1},
        kv(1),
        memory(1, (4, 8, 6), (2 * 4 * 8 + 4 * 6, 4)),
        {"layer_types": [LINEAR, FULL], **DELTA, "linear_num_key_heads": 4, "num_hidden_layers": 2},
    ),
    "bamba": Case({"mamba2": 1, "swiglu": 2, "attention": 1}, kv(1), SSD, {**SSM, "attn_layer_indices": [1]}),
    "nemotron_h": Case(
        {"mamba2": 1, "relu2": 1, "attention": 1},
        kv(1),
        SSD,
        {
            "layers_block_type": [LINEAR, "mlp", FULL],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 6,
            "n_groups": 2,
            "head_dim": 8,
        },
    ),
    "qwen3_5_text": Case(HYBRID, kv(1), DELTA_BYTES, {**QWEN, "rope_parameters": MROPE}),
    "qwen3_next": Case(HYBRID, kv(1), DELTA_BYTES, {**QWEN, "num_experts": 0}),
    "qwen3_5": Case(
        HYBRID,
        kv(1),
        DELTA_BYTES,
        {"text_config": {**QWEN, "rope_parameters": MROPE}, "vision_config": VISION, **IDS},
        SEES,
    ),
    "qwen3_vl": Case(
        TRANSFORMER,
        kv(),
        0,
        {
            "text_config": {**SMALL, "head_dim": 8, "rope_parameters": MROPE},
            "vision_config": {**VISION, "deepstack_visual_indexes": [0]},
            **IDS,
        },
        SEES,
    ),
    "lfm2_vl": Case(
        {"short_conv": 1, "swiglu": 2, "attention": 1},
        kv(1),
        2 * 32 * 4,
        {
            "text_config": {"model_type": "lfm2", **SMALL, "layer_types": ["conv", FULL]},
            "vision_config": {"model_type": "siglip2_vision_model", **SIGLIP, "num_patches": 25},
            "projector_hidden_size": 40,
            "image_token_id": 5,
        },
        SEES,
    ),
} | {
    kind: Case(
        TRANSFORMER,
        kv(),
        0,
        {
            "text_config": {"model_type": "llama", **SMALL},
            "vision_config": {**SIGLIP, "image_size": 364, "patch_size": 14},
            "scale_factor": 2,
            "image_token_id": 5,
        },
        reads,
    )
    for kind, reads in (("idefics3", LOOKS), ("smolvlm", SEES))
}


def folder_of(kind: str, folder: Path) -> int:
    """A random model of the family as Transformers saves it, with a tokenizer and a template; its parameters."""
    case = CASES[kind]
    nested = "vision_config" in case.config
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(kind, **({} if nested else SMALL) | case.config)
    auto = transformers.AutoModelForImageTextToText if nested else transformers.AutoModelForCausalLM
    model = auto.from_config(config)
    model.save_pretrained(folder)
    if kind == "olmo_hybrid":
        as_published(model, folder)
    chat = {"eos_token": "<|im_end|>", "chat_template": small_tokenizers.CHATML}
    small_tokenizers.save(folder, small_tokenizers.byte_level(), **chat)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", CASES)
def test_a_family(fluvial, kind: str, tmp_path: Path, media: Path):
    case, parameters = CASES[kind], folder_of(kind, tmp_path)
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: none\n")
    shown = json.loads(fluvial("models", "show", tmp_path, "--json").stdout)
    name = shown["architecture"].lower().replace("_", "")
    assert shown["type"] == kind and name.startswith(kind.replace("_", "").removesuffix("text"))
    assert shown["blocks"] == case.blocks
    assert shown["parameters"] == parameters and shown["draft_parameters"] == 0
    assert (shown["vision_parameters"] > 0) == (case.reads != ("text",))
    assert (shown["tape_bytes_per_token"], shown["state_bytes"]) == (case.tape, case.state)
    assert tuple(shown["reads"]) == case.reads and shown["license"] == "apache-2.0"
    text = fluvial("models", "show", tmp_path).stdout
    assert f"{parameters:,}" in text and ("for vision" in text) == (case.reads != ("text",))
    assert ("for each token" in text) == bool(case.tape) and ("whatever the length" in text) == bool(case.state)
    looks = {"text": (), "image": ("-i", media / "image.png"), "video": ("-v", media / "clip.mp4")}
    for kind_of_input in case.reads:  # SmolVLM's videos need its own template: tests/parity/test_idefics3_session.py
        if (kind, kind_of_input) != ("smolvlm", "video"):
            answer = fluvial("run", tmp_path, "hi", *looks[kind_of_input], "-n", "8")
            assert answer.exit_code == 0, answer.output


def test_rwkv_from_an_official_file(fluvial, tmp_path: Path):
    torch.save(official(), tmp_path / "model.pth")
    letters = "\n", "\n\n", *"User: hiAssistant"
    lines = [f"{id} {piece!r} {len(piece)}" for id, piece in enumerate(dict.fromkeys(letters), 1)]
    lines += [f"{id} {chr(id + 200)!r} 2" for id in range(len(lines) + 1, VOCAB)]
    (tmp_path / "rwkv_vocab_v20230424.txt").write_text("\n".join(lines), "utf-8")
    for place in (tmp_path, tmp_path / "model.pth"):
        shown = json.loads(fluvial("models", "show", place, "--json").stdout)
        assert shown["blocks"] == {"rwkv7_time": LAYERS, "rwkv7_channel": LAYERS} and shown["type"] == "rwkv7"
        unused = RANKS["v"] * 2 * D + D  # the first layer's v0, v1, v2
        assert shown["parameters"] == sum(t.numel() for t in official().values()) - unused
        assert (shown["tape_bytes_per_token"], shown["state_bytes"]) == (0, LAYERS * 4 * (D // N * N * N + 2 * D))
        assert shown["file_bytes"] == (tmp_path / "model.pth").stat().st_size
        answer = fluvial("run", place, "hi", "-n", "8")
        assert answer.exit_code == 0, answer.output


def test_every_family_is_shown():
    assert {*CASES, "rwkv7", "pebble"} == set(checkpoints.supported())
