"""Mamba, Mamba-2 and FalconMamba against Transformers, in its layout and in that of the state-spaces repositories.

Transformers drops the old state when a chunk of several tokens continues it (Mamba, FalconMamba), and forgets
`time_step_limit` on single steps (Mamba-2): its one-shot forward is the truth for our splits and steps.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fluvial.adapters.errors import IntegrityError, UnsupportedError
from fluvial.adapters.pth import PthWeights
from fluvial.models import checkpoints
from tests.parity.reference import called, check_family, error, load, logits, perturbed, split_logits, tokens

transformers = pytest.importorskip("transformers")

VOCAB = 96
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "layer_norm_epsilon": 1e-4}
MAMBA2 = {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8, "state_size": 6}


def stirred(model: nn.Module) -> nn.Module:
    """Perturbed, and with longer steps and stronger B and C: otherwise the memory hardly moves the logits."""
    with torch.no_grad():
        for name, parameter in perturbed(model).named_parameters():
            if name.endswith(("dt_bias", "dt_proj.bias")):
                parameter += 3
            elif name.endswith("x_proj.weight"):
                parameter *= 3
    return model


def mamba(**options: Any) -> nn.Module:
    return stirred(transformers.MambaForCausalLM(transformers.MambaConfig(**{**SMALL, **options})))


def mamba2(**options: Any) -> nn.Module:
    return stirred(transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**{**SMALL, **MAMBA2, **options})))


def falcon(**options: Any) -> nn.Module:
    return stirred(transformers.FalconMambaForCausalLM(transformers.FalconMambaConfig(**{**SMALL, **options})))


FAMILIES = {
    "mamba": lambda: mamba(state_size=6, conv_kernel=3, time_step_rank=5, use_bias=True),
    "mamba-defaults": lambda: mamba(tie_word_embeddings=False),
    "mamba2": lambda: mamba2(conv_kernel=3, use_bias=True),
    "mamba2-limit": lambda: mamba2(tie_word_embeddings=True, time_step_limit=(0.3, 0.6), use_conv_bias=False),
    "falcon_mamba": lambda: falcon(tie_word_embeddings=False, mixer_rms_eps=1e-3, state_size=6),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_published(name: str, tmp_path: Path):
    model = FAMILIES[name]()
    model.save_pretrained(tmp_path / name)
    check_family(model, tmp_path / name, vocab=VOCAB, tolerance=1e-5)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "falcon_mamba"])
def test_states_are_the_reference_s(name: str, tmp_path: Path):
    model, ids = FAMILIES[name](), tokens(VOCAB)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        cache = model(ids, use_cache=True).cache_params
    state = logits(load(tmp_path), ids)[1]
    for layer in range(SMALL["num_hidden_layers"]):
        h, conv = state.leaves[f"{layer}.h"], state.leaves[f"{layer}.conv"]
        assert isinstance(h, Tensor) and isinstance(conv, Tensor)
        assert error(h, cache.get_recurrent_state(layer, state_idx=0)) < 1e-4
        theirs = cache.get_conv_state(layer, state_idx=0).mT  # they keep one more
        assert error(conv, theirs[:, -conv.shape[1] :]) < 1e-4


@pytest.mark.parametrize("make", [mamba, mamba2, falcon])
def test_the_sum_of_the_blocks_is_kept_in_fp32_where_the_config_says_so(make: Any, tmp_path: Path):
    """In bf16, over many layers and with large embeddings: no further from fp32 than the reference is, either way."""
    model = make(num_hidden_layers=16)
    model.get_input_embeddings().weight.mul_(40)
    ours, theirs = {}, {}
    for wide in (True, False):
        low = copy.deepcopy(model).bfloat16()
        low.config.residual_in_fp32 = wide
        for block in low.backbone.layers:
            block.residual_in_fp32 = wide
        low.save_pretrained(tmp_path)
        decoder, truth, half = load(tmp_path, torch.bfloat16), called(model), called(low)
        samples = [tokens(VOCAB, seed=seed) for seed in range(4)]
        ours[wide] = sum((logits(decoder, ids)[0] - truth(ids)).square().sum().item() for ids in samples) ** 0.5
        theirs[wide] = sum((half(ids) - truth(ids)).square().sum().item() for ids in samples) ** 0.5
        assert ours[wide] <= 1.25 * theirs[wide]
    assert ours[True] < 0.8 * ours[False], "the sum was rounded to bf16"
    assert load(tmp_path, torch.float64).dtype == torch.float64


def original(model: nn.Module, folder: Path, config: dict[str, Any]) -> Path:
    """As state-spaces publish: no model_type, another name for the embedding, torch's file, the tied head saved too."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    renamed = {name.replace("embeddings", "embedding"): tensor for name, tensor in model.state_dict().items()}
    torch.save(renamed, folder / "pytorch_model.bin")
    return folder


ORIGINAL = {"d_model": 32, "n_layer": 2, "vocab_size": 93, "rms_norm": True, "residual_in_fp32": True}
ORIGINAL |= {"fused_add_norm": True, "pad_vocab_size_multiple": 8}
SSM2 = {"layer": "Mamba2", "d_state": 6, "headdim": 8, "ngroups": 2, "chunk_size": 8, "rmsnorm": True}


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_original_layout(name: str, tmp_path: Path):
    eps = {"layer_norm_epsilon": 1e-5}
    if name == "mamba":
        config = transformers.MambaConfig(**SMALL | eps | {"state_size": 6})
        model, ssm = stirred(transformers.MambaForCausalLM(config)), {"d_state": 6, "dt_min": 0.01}
    else:
        config = transformers.Mamba2Config(**SMALL | eps | MAMBA2 | {"tie_word_embeddings": True})
        model, ssm = stirred(transformers.Mamba2ForCausalLM(config)), SSM2
    ids = tokens(VOCAB)
    with torch.no_grad():
        expected = model(ids).logits
    decoder = load(original(model, tmp_path / name, ORIGINAL | {"ssm_cfg": ssm}))
    assert error(logits(decoder, ids)[0], expected) < 1e-4
    assert error(split_logits(decoder, ids, [7, 1, 32]), expected) < 1e-4


def test_layer_norms_of_the_original_layout():
    config = ORIGINAL | {"ssm_cfg": {}, "rms_norm": False}
    found = checkpoints.family("mamba").decoder_config(config)
    assert (found.norm, found.vocab, found.tied_head) == ("layer", 96, True)


def test_falcon_mamba_7b_says_expand_16_and_means_2():
    config = SMALL | {"expand": 16, "intermediate_size": 64}
    assert checkpoints.family("falcon_mamba").decoder_config(config).blocks[0].options["d_inner"] == 64


@pytest.mark.parametrize(
    ("family", "config", "named"),
    [
        ("mamba", SMALL | {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("mamba2", SMALL | MAMBA2 | {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("mamba2", ORIGINAL | {"ssm_cfg": SSM2 | {"D_has_hdim": True}}, "D_has_hdim=True"),
        ("mamba2", ORIGINAL | {"ssm_cfg": SSM2 | {"norm_before_gate": True}}, "norm_before_gate=True"),
        ("mamba2", ORIGINAL | {"ssm_cfg": SSM2 | {"d_ssm": 16}}, "d_ssm=16"),
        ("mamba", ORIGINAL | {"ssm_cfg": {}, "attn_layer_idx": [1]}, "attn_layer_idx"),
        ("mamba", ORIGINAL | {"ssm_cfg": {"novel": 1}}, "novel"),
        ("mamba", ORIGINAL | {"ssm_cfg": {"layer": "Mamba9"}}, "layer='Mamba9'"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(family: str, config: dict[str, Any], named: str):
    with pytest.raises(UnsupportedError, match=named):
        checkpoints.family(family).decoder_config(config)


def test_a_file_that_is_damaged_or_runs_code_is_refused(tmp_path: Path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(4000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(IntegrityError, match="damaged"):
        PthWeights(path)
    torch.save({"a": Path("x")}, path)  # needs a class: code of the file's choice
    with pytest.raises(IntegrityError, match="wants to run code"):
        PthWeights(path)
    torch.save({"a": [1, 2]}, path)
    with pytest.raises(IntegrityError, match="more than named tensors"):
        PthWeights(path)
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    assert PthWeights(path).shapes() == {"a": (3,)}
