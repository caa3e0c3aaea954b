"""LFM2, Granite 4 hybrid, Falcon-H1, OLMo-hybrid, Bamba and dense Nemotron-H against Transformers.

Where Transformers is wrong, and what is done here:
- Mamba-2 layers forget `time_step_limit` on single steps: its one-shot forward is the truth for our steps too.
- Bamba restarts positions at 0 when a state goes on without `position_ids`: again the one-shot forward is right.
- Saving OLMo-hybrid cuts the three convolutions into equal thirds, whatever the widths of q, k and v, and renames the
  attention layers' first norm: `as_published` puts back what its own converter (and so the hub) has.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fluvial.adapters.errors import IntegrityError, UnsupportedError
from fluvial.models import checkpoints
from fluvial.models.decoder import Decoder
from fluvial.models.state import State
from fluvial.models.tape import Tape
from tests.parity.reference import check_family, error, load, logits, perturbed, tokens

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 52,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
SSD = {"mamba_n_heads": 8, "mamba_d_state": 6, "mamba_n_groups": 2, "mamba_chunk_size": 8}
LINEAR, FULL = "linear_attention", "full_attention"


def made(model_type: str, layers: list[str] | int, *, nope: bool = False, **options: Any) -> nn.Module:
    """Perturbed, with slower decays and stronger inputs: otherwise the memory hardly moves the logits. `layers`: their
    types, or how many."""
    if isinstance(layers, list):
        key = "layers_block_type" if model_type == "nemotron_h" else "layer_types"
        options, layers = {key: layers, **options}, len(layers)
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, "num_hidden_layers": layers, **options})
    if nope:  # as OLMo's converter does it; the constructor would put the default
        config.rope_parameters = config.rope_theta = None
    torch.manual_seed(7)
    model = perturbed(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter -= 2
            elif name.endswith(("in_proj.weight", "conv1d.weight")):
                parameter *= 3
    return model


def as_published(model: nn.Module, folder: Path) -> None:
    """OLMo-hybrid's weights as its converter writes them."""
    from safetensors.torch import load_file, save_file

    tensors, config = load_file(folder / "model.safetensors"), model.config
    key = config.linear_num_key_heads * config.linear_key_head_dim  # type: ignore[union-attr, operator]
    value = config.linear_num_value_heads * config.linear_value_head_dim  # type: ignore[union-attr, operator]
    for name, tensor in model.state_dict().items():
        if name.endswith("conv1d.weight"):
            for part, taps in zip("qkv", tensor.split([key, key, value]), strict=True):
                tensors[name.replace("conv1d", f"{part}_conv1d")] = taps.contiguous()
        elif name.endswith("post_feedforward_layernorm.weight"):
            prefix = name.removesuffix("post_feedforward_layernorm.weight")
            tensors[f"{prefix}post_attention_layernorm.weight"] = tensors.pop(f"{prefix}feedforward_layer_norm.weight")
    save_file(tensors, folder / "model.safetensors")


LFM2: dict[str, Any] = {"conv_bias": True, "block_multiple_of": 16, "block_ffn_dim_multiplier": 1.3}
GRANITE: dict[str, Any] = {**SSD, "num_local_experts": 0, "shared_intermediate_size": 40, "embedding_multiplier": 3.0}
GRANITE |= {"residual_multiplier": 0.6, "attention_multiplier": 0.4, "logits_scaling": 7.0}
FALCON: dict[str, Any] = {**SSD, "mamba_d_ssm": 48, "embedding_multiplier": 2.5, "lm_head_multiplier": 0.3}
FALCON |= {"mlp_multipliers": [0.8, 0.7], "ssm_multipliers": [1.3, 0.8, 1.5, 0.7, 1.2], "key_multiplier": 0.6}
FALCON |= {"attention_in_multiplier": 1.2, "attention_out_multiplier": 0.9, "ssm_in_multiplier": 1.3}
FALCON |= {"ssm_out_multiplier": 1.1}
NEMOTRON = {"mamba_num_heads": 8, "mamba_head_dim": 4, "ssm_state_size": 6, "n_groups": 2, "head_dim": 8}
TIED = {"tie_word_embeddings": True}
BIASED = {"attention_bias": True, "mamba_proj_bias": True}

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "lfm2": lambda: made("lfm2", ["conv", FULL, "conv"], **LFM2),
    "lfm2-plain": lambda: made(
        "lfm2", 2, block_auto_adjust_ff_dim=False, conv_L_cache=4, full_attn_idxs=[1], tie_word_embeddings=False
    ),
    "granitemoehybrid": lambda: made("granitemoehybrid", [LINEAR, FULL], **GRANITE, **TIED),
    "granitemoehybrid-rope": lambda: made(
        "granitemoehybrid",
        [FULL, LINEAR],
        **{**GRANITE, **BIASED, "position_embedding_type": "rope", "time_step_limit": (0.3, 0.9)},
    ),
    "falcon_h1": lambda: made("falcon_h1", 2, **FALCON),
    "falcon_h1-before": lambda: made(
        "falcon_h1", 2, **FALCON, **BIASED, mlp_bias=True, projectors_bias=True, mamba_rms_norm=True
    ),
    "falcon_h1-after": lambda: made(
        "falcon_h1", 1, **SSD, **TIED, mamba_d_ssm=None, mamba_rms_norm=True, mamba_norm_before_gate=False
    ),
    "olmo_hybrid": lambda: made("olmo_hybrid", [LINEAR, FULL]),
    "olmo_hybrid-nope": lambda: made(
        "olmo_hybrid",
        [LINEAR, LINEAR, FULL],
        nope=True,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=4,  # q, k and v equally wide: Transformers' own file is right
        linear_allow_neg_eigval=False,
        attention_bias=True,
    ),
    "bamba": lambda: made("bamba", 2, **SSD, attn_layer_indices=[1], mlp_bias=True, attention_bias=True),
    "nemotron_h": lambda: made(
        "nemotron_h", [LINEAR, "mlp", FULL, LINEAR], **NEMOTRON, use_bias=True, mlp_bias=True, time_step_min=0.4
    ),
}
_made: dict[str, nn.Module] = {}


def published(name: str, folder: Path) -> nn.Module:
    """The reference of a variant, saved in `folder`."""
    model = _made[name] if name in _made else _made.setdefault(name, FAMILIES[name]())
    model.save_pretrained(folder)  # type: ignore[operator]
    if name == "olmo_hybrid":
        as_published(model, folder)
    return model


def memory_matters(decoder: Decoder, ids: Tensor) -> None:
    """Every leaf of the state, one at a time: without it the next logits are others."""
    _, state = logits(decoder, ids)
    expected = logits(decoder, ids[:, :1], state)[0]
    for name, leaf in state.leaves.items():
        if isinstance(leaf, Tensor):
            without = State({**state.leaves, name: torch.zeros_like(leaf)}, state.position, state.model)
            assert error(logits(decoder, ids[:, :1], without)[0], expected) > 3e-3, name


@pytest.mark.parametrize("name", FAMILIES)
def test_published(name: str, tmp_path: Path) -> None:
    check_family(published(name, tmp_path / name), tmp_path / name, vocab=96)
    memory_matters(load(tmp_path / name), tokens(96))


@pytest.mark.parametrize("name", ["lfm2", "granitemoehybrid", "falcon_h1", "olmo_hybrid"])
def test_states_are_the_reference_s(name: str, tmp_path: Path) -> None:
    """Named as ours are; keys without Falcon-H1's key multiplier, which we apply to the scores."""
    model, ids = published(name, tmp_path), tokens(96)
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    state, seen = logits(load(tmp_path), ids)[1], set[str]()
    for leaf_name, leaf in state.leaves.items():
        block, *_, kind = leaf_name.split(".")
        layer = int(block) // 2
        seen.add(kind)
        if isinstance(leaf, Tape):
            keys = cache.layers[layer].keys / (0.6 if name == "falcon_h1" else 1)
            assert max(error(leaf.rows[0], keys), error(leaf.rows[1], cache.layers[layer].values)) < 1e-4
        elif kind in ("h", "S"):
            assert error(leaf, cache.get_recurrent_state(layer, state_idx=0)) < 1e-4
        else:
            theirs = cache.get_conv_state(layer, state_idx=0).mT[:, -leaf.shape[1] :]  # they may keep one more
            if kind[1:] == "_conv":
                width, at = 24, "qkv".index(kind[0])
                theirs = theirs.split([width, width, 2 * width], -1)[at]
            assert error(leaf, theirs) < 1e-4
    assert {"kv"} < seen


def _config(name: str, **change: Any) -> dict[str, Any]:
    return {**SMALL, **SSD, "model_type": name, "num_hidden_layers": 2, "num_local_experts": 0, **change}


def _found(name: str, **change: Any) -> Any:
    return checkpoints.family(name).decoder_config(_config(name, **change))


def test_first_releases_of_lfm2_spell_differently() -> None:
    old = {"block_ff_dim": 52, "intermediate_size": 999, "tie_embedding": False, "full_attn_idxs": [0]}
    old |= {"rope_theta": 5e5, "block_multiple_of": 16, "conv_dim": 32, "block_use_swiglu": True}
    new = {"intermediate_size": 52, "tie_word_embeddings": False, "layer_types": [FULL, "conv"]}
    new |= {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "block_multiple_of": 16}
    assert _found("lfm2", **old) == _found("lfm2", **new)
    assert _found("lfm2", **old).blocks[1].options["d_ff"] == 48


def test_legacy_layer_types_mean_the_same() -> None:
    old, new = ["mamba", "attention"], [LINEAR, FULL]
    assert _found("granitemoehybrid", layer_types=old) == _found("granitemoehybrid", layers_block_type=new)


def test_layers_of_nemotron_h_as_a_pattern() -> None:
    named = _found("nemotron_h", **NEMOTRON, layers_block_type=["mamba", "mlp", "attention"])
    assert _found("nemotron_h", **NEMOTRON, hybrid_override_pattern="M-*") == named
    assert [block.kind for block in named.blocks] == ["mamba2", "relu2", "attention"]


FELT: dict[str, dict[str, Any]] = {
    "falcon_h1-before": {
        **{name: 1.0 for name in FALCON if name.endswith("_multiplier")},
        "mlp_multipliers": [0.8, 1.0],
    },
    "granitemoehybrid-rope": {**{name: 1.0 for name in GRANITE if name.endswith(("_multiplier", "_scaling"))}},
    "olmo_hybrid": {"linear_allow_neg_eigval": False},
}


@pytest.mark.parametrize("name", FELT)
def test_every_multiplier_is_felt(name: str, tmp_path: Path) -> None:
    """That parity is no accident: leaving one of them out is seen."""
    model, ids = published(name, tmp_path), tokens(96)
    with torch.no_grad():
        expected = model(ids).logits
    said = json.loads((tmp_path / "config.json").read_text())
    for option, value in FELT[name].items():
        (tmp_path / "config.json").write_text(json.dumps({**said, option: value}))
        assert error(logits(load(tmp_path), ids)[0], expected) > 1e-2, option


def test_multipliers_of_one_cost_nothing() -> None:
    plain = _found("falcon_h1", mamba_d_ssm=64, ssm_multipliers=[1.0] * 5, mlp_multipliers=[1.0, 0.5])
    assert plain.blocks[1].kind == "swiglu" and plain.blocks[1].scale == 0.5
    assert plain.blocks[0].options["branches"]["ssd"]["options"]["scales"] == ()


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("lfm2", {"conv_dim_out": 48}, "conv_dim_out=48"),
        ("lfm2", {"layer_types": ["conv", "sliding_attention"]}, "sliding_attention"),
        ("lfm2", {"use_pos_enc": False}, "use_pos_enc=False"),
        ("granitemoehybrid", {"num_local_experts": 62}, "num_local_experts = 62"),
        ("granitemoehybrid", {"position_embedding_type": "alibi"}, "alibi"),
        ("granitemoehybrid", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("falcon_h1", {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("falcon_h1", {"mamba_d_ssm": 64, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("nemotron_h", {**NEMOTRON, "hybrid_override_pattern": "ME"}, "experts"),
        ("nemotron_h", {**NEMOTRON, "hybrid_override_pattern": "M?"}, r"of type \?"),
        ("olmo_hybrid", {"linear_use_gate": False}, "linear_use_gate=False"),
        ("olmo_hybrid", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(family: str, change: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        _found(family, **change)


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """What Transformers saves for OLMo-hybrid where q and v differ in width."""
    model = published("olmo_hybrid", tmp_path)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(IntegrityError, match="_conv1d"):
        load(tmp_path)
