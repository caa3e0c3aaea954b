"""A small random checkpoint of each architecture of `engine/matrix.py` as a folder, with a vision tower, a trained
head's file and plugins beside it."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from examples.pebble.export import published
from fluvial.adapters.linear import Embedding, Linear
from fluvial.encoders.pebble import PebbleVision, PebbleVisionConfig
from fluvial.engine import state_plugin
from fluvial.engine.model import Model, load_model, resolve
from fluvial.models.ahead import Ahead
from fluvial.models.decoder import BlockConfig, Decoder, DecoderConfig
from tests.adapters import peft_files
from tests.engine import small_tokenizers
from tests.parity import test_mtp
from tests.parity.reference import perturbed
from tests.parity.test_qwen3_5 import MROPE, TEXT, VISION

D, VOCAB = 64, 1024
FF = BlockConfig("swiglu", {"d_ff": 96})
ATTENTION = BlockConfig("attention", {"heads": 4, "kv_heads": 2, "d_head": 16, "qk_norm": "rms"})
MAMBA = BlockConfig("mamba", {"d_inner": 128, "d_state": 8, "rank": 32})
MAMBA2 = BlockConfig("mamba2", {"heads": 4, "d_head": 32, "d_state": 16})
DELTA = BlockConfig("gated_delta", {"heads": 2, "d_k": 32, "d_v": 32})
SHORT = BlockConfig("short_conv", {"conv": 3})
TIME = [BlockConfig("rwkv7_time", {"d_head": 32, "ranks": [32, 32, 32, 32], "first": first}) for first in (True, False)]
CHANNEL = BlockConfig("rwkv7_channel", {"d_ff": 96})
BLOCKS = {
    "mamba": [MAMBA, FF, MAMBA, FF],
    "mamba2": [MAMBA2, FF, MAMBA2, FF],
    "rwkv7": [TIME[0], CHANNEL, TIME[1], CHANNEL],
    "gated_delta": [DELTA, FF, DELTA, FF],
    "short_conv hybrid": [SHORT, FF, ATTENTION, FF, SHORT, FF],
    "transformer": [ATTENTION, FF, ATTENTION, FF],
}
QWEN = "qwen3_5 hybrid"
TOWER = {"width": 48, "heads": 2, "depth": 1, "channels": (16, 32), "tokens": 16, "video_tokens": 4}
_kept = tempfile.TemporaryDirectory()  # for as long as the tests run


@cache
def folder_of(architecture: str) -> Path:
    """The checkpoint, with all that may lie beside its weights."""
    folder = Path(_kept.name, architecture.replace(" ", "-"))
    make = _qwen if architecture == QWEN else _pebble
    torch.manual_seed(11)
    make(folder, architecture)
    torch.manual_seed(12)
    head = Ahead(D, 64)
    for parameter in head.parameters():
        parameter.data += torch.randn_like(parameter) * 0.05
    head.save(folder)
    return folder


def _pebble(folder: Path, architecture: str) -> None:
    shutil.copytree(resolve("pebble"), folder, ignore=lambda _, names: [n for n in names if "safetensors" in n])
    decoder = Decoder(DecoderConfig(VOCAB, D, tuple(BLOCKS[architecture]))).requires_grad_(False)
    tower = PebbleVision(PebbleVisionConfig(D, **TOWER)).requires_grad_(False)
    for layer in decoder.modules():
        if isinstance(layer, Linear) and not isinstance(layer, Embedding):
            layer.parts["weight"].mul_(2)  # so that what it says depends on all that went in
    for parameter in (*decoder.parameters(), *tower.parameters()):
        parameter += torch.randn_like(parameter) * 0.05
    tensors = {
        f"{part}.{n}": t for part, m in (("decoder", decoder), ("vision", tower)) for n, t in m.state_dict().items()
    }
    save_file(published(tensors), folder / "model.safetensors")
    text: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": D, "norm": "rms", "norm_eps": 1e-6}
    text |= {"blocks": [{"kind": b.kind, **b.options} for b in decoder.config.blocks], "tie_word_embeddings": True}
    config = {"model_type": "pebble", "text_config": text, "vision_config": TOWER}
    (folder / "config.json").write_text(json.dumps(config))


def _qwen(folder: Path, _: str) -> None:
    import transformers

    tokenizer, source = small_tokenizers.byte_level(), folder.with_name("qwen-source")
    small_tokenizers.save(source, tokenizer, eos_token="<|im_end|>", chat_template=small_tokenizers.CHATML)
    ids = {f"{kind}_token_id": tokenizer.token_to_id(f"<|{kind}_pad|>") for kind in ("image", "video")}
    text = {**TEXT, "vocab_size": tokenizer.get_vocab_size(), "rope_parameters": MROPE, "mtp_num_hidden_layers": 1}
    config = transformers.Qwen3_5Config(text_config=text, vision_config=VISION, tie_word_embeddings=True, **ids)
    perturbed(transformers.Qwen3_5ForConditionalGeneration(config)).save_pretrained(source)
    peft_files.checkpoint(source, folder, peft_files.published(source) | test_mtp.published())


@cache
def model_of(architecture: str, format: str, kv: str, state_dtype: str = "fp32") -> Model:
    """Loaded, computing in fp32, with its plugins "lora" and, where there is a state, "state"."""
    kv, folder = "window:24" if kv == "window" else kv, folder_of(architecture)
    model = load_model(folder, dtype="fp32", quant=format, kv=kv, state_dtype=state_dtype)
    model.plugins.load(lora(architecture), "lora")
    if state_plugin.recurrent(model.decoder):
        model.plugins.load(start(model, architecture), "state")
    return model


@cache
def lora(architecture: str) -> Path:
    """Random LoRA on every matrix of decoder and tower."""
    folder = folder_of(architecture)
    tensors: dict[str, Tensor] = {}
    for name, tensor in peft_files.published(folder).items():
        inner = ".layers." in name or ".blocks." in name
        if inner and not name.startswith("mtp.") and name.endswith(".weight") and tensor.ndim == 2:
            tensors |= peft_files.pair(name.removesuffix(".weight"), *tensor.shape, seed=100 + len(tensors))
    return peft_files.write(folder / "lora", tensors)


def start(model: Model, architecture: str) -> Path:
    """A random state plugin; one of another model where this one has no state."""
    draw, path = torch.Generator().manual_seed(5), folder_of(architecture) / "start.safetensors"
    leaves = {
        n: torch.randn(leaf.shape, generator=draw) * 0.4 for n, leaf in state_plugin.recurrent(model.decoder).items()
    }
    state_plugin.write(path, leaves or {"0.S": torch.ones(1)})
    return path
