"""RWKV-7 against the `rwkv` package, from an official `.pth` and from the safetensors layout of flash-linear-attention.

The package chooses its version by an environment variable at import, so it runs in a process of its own, once; both
of its ways are compared, a sequence at once and token by token from its state. fla itself is not installed (it needs a
GPU's compiler): its layout is made here from the same tensors by its converter's rules.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluvial.adapters.errors import IntegrityError, UnsupportedError
from fluvial.adapters.pth import torch_file
from fluvial.engine.model import load_model
from fluvial.engine.rwkv_tokenizer import WorldTokenizer
from fluvial.models.checkpoints import rwkv7
from fluvial.models.decoder import Decoder
from fluvial.models.state import State
from tests.parity.reference import GREEDY, TOLERANCE, error, greedy, load, logits, split_logits, splits, tokens

pytestmark = pytest.mark.skipif(find_spec("rwkv") is None, reason="the reference needs the rwkv package")

VOCAB, D, N, FF, LAYERS = 80, 48, 16, 96, 3
RANKS = {"w": 6, "a": 5, "v": 4, "g": 7}
SCRIPT = """
import os, sys, torch
os.environ |= {"RWKV_V7_ON": "1", "RWKV_CUDA_ON": "0"}
torch.set_num_threads(1)
from rwkv.model import RWKV
from safetensors.torch import save_file
folder, count = sys.argv[1], int(sys.argv[2])
ids = [int(id) for id in sys.argv[3:]]
with torch.no_grad():
    model = RWKV(folder + "/model", "cpu fp32")
    whole, state = model.forward(ids, None, full_output=True)
    out = {f"{i}.S": state[3 * i + 1].float() for i in range(len(state) // 3)}
    out |= {f"{i}.{k}": state[3 * i + 2 * k].float() for i in range(len(state) // 3) for k in (0, 1)}
    out = {name: tensor.clone() for name, tensor in out.items()}
    words, last = [], whole[-1]
    for _ in range(count):
        words.append(int(last.argmax()))
        last, state = model.forward([words[-1]], state)
    steps, state = [], None
    for id in ids:
        step, state = model.forward([id], state)
        steps.append(step)
    low, _ = RWKV(folder + "/model", "cpu bf16").forward(ids, None, full_output=True)
out |= {"low": low.float(), "whole": whole, "steps": torch.stack(steps), "words": torch.tensor(words)}
save_file({name: tensor.contiguous().clone() for name, tensor in out.items()}, folder + "/reference.safetensors")
"""


def official() -> dict[str, Tensor]:
    """A random model by the official names; every vector is off its default, gates and decays spread out."""
    generator = torch.Generator().manual_seed(4)

    def rand(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + rand(D, scale=0.2), f"{name}.bias": rand(D, scale=0.2)}

    made = (
        {"emb.weight": rand(VOCAB, D), "head.weight": rand(VOCAB, D, scale=0.3)} | norm("ln_out") | norm("blocks.0.ln0")
    )
    for i in range(LAYERS):
        at, ffn = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        made |= norm(f"blocks.{i}.ln1") | norm(f"blocks.{i}.ln2") | norm(f"{at}ln_x")
        made |= {f"{at}x_{letter}": torch.rand(1, 1, D, generator=generator) for letter in "rwkvag"}
        for letter, rank in RANKS.items():
            made |= {f"{at}{letter}1": rand(D, rank, scale=0.3), f"{at}{letter}2": rand(rank, D, scale=0.5)}
            made |= {f"{at}{letter}0": rand(1, 1, D, scale=2)} if letter != "g" else {}
        made |= {f"{at}k_k": 0.8 + rand(1, 1, D, scale=0.2), f"{at}k_a": 1 + rand(1, 1, D, scale=0.2)}
        made[f"{at}r_k"] = rand(D // N, N, scale=0.2)
        made |= {f"{at}{name}.weight": rand(D, D, scale=0.15) for name in ("receptance", "key", "value", "output")}
        made |= {f"{ffn}x_k": torch.rand(1, 1, D, generator=generator), f"{ffn}key.weight": rand(FF, D, scale=0.15)}
        made[f"{ffn}value.weight"] = rand(D, FF, scale=0.1)
    return {name: tensor.bfloat16() for name, tensor in made.items()}  # as they are published


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """The folder of an official `.pth`, and what the package says about it."""
    folder = tmp_path_factory.mktemp("rwkv")
    torch.save(official(), folder / "model.pth")
    ids = [str(id) for id in tokens(VOCAB)[0].tolist()]
    command = [sys.executable, "-c", SCRIPT, str(folder), str(GREEDY), *ids]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return folder, load_file(folder / "reference.safetensors")


def check(decoder: Decoder, reference: dict[str, Tensor]) -> State:
    ids, whole = tokens(VOCAB), reference["whole"][None]
    ours, state = logits(decoder, ids)
    one_shot = max(error(ours, whole), error(ours[0], reference["steps"]))
    split = max(error(split_logits(decoder, ids, splits(ids.shape[1], seed)), whole) for seed in (2, 3))
    step = error(split_logits(decoder, ids, [1] * ids.shape[1]), whole)
    given, wanted = greedy(decoder, ids), reference["words"].tolist()
    print(f"parity  rwkv7  one-shot {one_shot:.1e}  split {split:.1e}  step {step:.1e}  greedy {given == wanted}")
    assert max(one_shot, split, step) < TOLERANCE
    assert given == wanted
    return state


def test_official_pth(published: tuple[Path, dict[str, Tensor]]):
    folder, reference = published
    state = check(load(folder), reference)
    for layer in range(LAYERS):
        S, shift, after = (
            state.leaves[name] for name in (f"{2 * layer}.S", f"{2 * layer}.shift", f"{2 * layer + 1}.shift")
        )
        assert isinstance(S, Tensor) and isinstance(shift, Tensor) and isinstance(after, Tensor)
        assert error(S[0].mT, reference[f"{layer}.S"]) < TOLERANCE  # theirs is [V, K]
        assert error(shift[0, 0], reference[f"{layer}.0"]) < TOLERANCE
        assert error(after[0, 0], reference[f"{layer}.1"]) < TOLERANCE


def test_a_single_file_in_bf16(published: tuple[Path, dict[str, Tensor]]):
    folder, reference = published
    low = logits(load(folder / "model.pth", torch.bfloat16), tokens(VOCAB))[0][0]
    ours, theirs = ((rows - reference["whole"]).square().mean().sqrt() for rows in (low, reference["low"]))
    print(f"parity  rwkv7  bf16 {ours / theirs:.2f}x")
    assert ours <= 1.25 * theirs


def test_a_pth_file_beside_its_vocabulary_is_a_model(tmp_path: Path):
    torch.save(official(), tmp_path / "model.pth")
    lines = [f"{id} {chr(id + 46)!r} 1" for id in range(1, VOCAB)]
    (tmp_path / "rwkv_vocab_v20230424.txt").write_text("\n".join(lines), "utf-8")
    model = load_model(tmp_path / "model.pth")
    assert isinstance(model.tokenizer, WorldTokenizer)
    assert model.tokenizer.encode("/0", special=False) == [1, 2]
    assert model.explain()["blocks"] == {"rwkv7_time": LAYERS, "rwkv7_channel": LAYERS}


def fla_layout(folder: Path, *, old: bool = False) -> dict[str, Any]:
    """Writes the converter's safetensors; `old` with the six mixing vectors as one. Returns the config."""
    words = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
    top = {"emb.weight": "model.embeddings.weight", "head.weight": "lm_head.weight"}
    top |= {"ln_out.weight": "model.norm.weight", "ln_out.bias": "model.norm.bias"}
    parts = {"att": "attn", "ffn": "ffn", "ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
    made: dict[str, Tensor] = {}
    for name, tensor in official().items():
        if name in top:
            made[top[name]] = tensor
            continue
        _, layer, part, leaf, *rest = [*name.split("."), ""]
        owner = f"model.layers.{layer}.{parts[part]}"
        if part == "att" and leaf[0] in "wavg" and leaf[1:].isdigit():
            if (layer, leaf[0]) != ("0", "v"):
                place = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[leaf[1]]
                made[f"{owner}.{leaf[0]}_lora.lora.{place}"] = tensor.flatten() if leaf[1] == "0" else tensor.t()
        elif part == "att" and leaf in words:
            made[f"{owner}.{words[leaf]}.{rest[0]}"] = tensor
        else:
            keep = tensor.flatten() if leaf in ("k_k", "k_a") or (part == "ffn" and leaf == "x_k") else tensor
            made[".".join(filter(None, [owner, leaf, *rest]))] = keep
    if old:
        for layer in range(LAYERS):
            at = f"model.layers.{layer}.attn."
            made[at + "x_x"] = torch.stack([made.pop(f"{at}x_{letter}").flatten() for letter in "rwkvag"])
    config = {"model_type": "rwkv7", "hidden_size": D, "num_hidden_layers": LAYERS, "head_dim": N, "num_heads": 32}
    config |= {"vocab_size": VOCAB, "hidden_ratio": FF / D, "intermediate_size": None, "norm_eps": 4e-5}
    config |= {"decay_low_rank_dim": 6, "a_low_rank_dim": 5, "v_low_rank_dim": 4, "gate_low_rank_dim": 7}
    config |= {"norm_first": True, "norm_bias": True, "attn": None, "hidden_act": "sqrelu", "value_dim": [D] * LAYERS}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous().clone() for name, tensor in made.items()}, folder / "model.safetensors")
    return config


@pytest.mark.parametrize("old", [False, True])
def test_fla_safetensors(old: bool, published: tuple[Path, dict[str, Tensor]], tmp_path: Path):
    """Heads of 16 with eps 4e-5 give the official group norm's 64e-5, but its layer norms keep 1e-5."""
    config = fla_layout(tmp_path / "fla", old=old)
    found = rwkv7.decoder_config(config)
    assert found.blocks[0].options["norm_eps"] == pytest.approx(64e-5) and found.norm_eps == 4e-5
    decoder = load(tmp_path / "fla")
    for norm in (decoder.embed_norm, decoder.norm, *(block.norm for block in decoder.blocks)):
        norm.eps = 1e-5
    check(decoder, published[1])


def test_missing_and_unknown_tensors_are_named(tmp_path: Path):
    tensors = official()
    del tensors["blocks.1.att.x_w"]
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(IntegrityError, match=r"lacks tensors: blocks\.1\.att\.x_w"):
        load(tmp_path)
    torch.save(official() | {"blocks.0.ffn.s_emb.weight": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(IntegrityError, match=r"blocks\.0\.ffn\.s_emb\.weight"):
        load(tmp_path)
    torch.save({"blocks.0.att.time_decay": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(IntegrityError, match="no RWKV-7 model"):
        load(tmp_path)
    assert torch_file(tmp_path) == tmp_path / "a.pth"


@pytest.mark.parametrize(
    ("option", "value"), [("attn", {"layers": [1]}), ("hidden_act", "gelu"), ("norm_bias", False), ("value_dim", 96)]
)
def test_what_is_not_implemented_is_refused_by_name(option: str, value: Any, tmp_path: Path):
    with pytest.raises(UnsupportedError, match=option):
        rwkv7.decoder_config(fla_layout(tmp_path / "fla") | {option: value})
