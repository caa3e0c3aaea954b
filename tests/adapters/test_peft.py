"""PEFT folders by hand: names and ranks, the formulas, where rows and columns go, and what is refused before anything
changes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fluvial.adapters import peft, placement
from fluvial.adapters.errors import FluvialError, IntegrityError, ModelNotFoundError, UnsupportedError
from fluvial.adapters.linear import Embedding, Linear
from fluvial.adapters.lora import LoraPair
from fluvial.adapters.peft_config import PeftConfig, read_config
from fluvial.adapters.weights import Piece
from tests.adapters.peft_files import PREFIX, noise, pair, table, write

VOCAB, D, OUT = 20, 6, 8


class Small(nn.Module):
    """A table, a projection with a bias, a fused one, a norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embedding, self.proj = Embedding(VOCAB, D).double(), Linear(D, OUT, bias=True).double()
        self.fused, self.gain = Linear(D, 2 * OUT).double(), nn.Parameter(torch.ones(D).double())
        with torch.no_grad():
            self.proj.bias.copy_(noise(OUT, seed=5))


def plan(name: str) -> list[Piece] | None:
    """Published: embed, layers.0.proj, layers.0.left and .right (rows of `fused`), norm; `unused` is known."""

    def rows(at: int) -> Callable[[Tensor], Tensor]:
        def take(part: Tensor) -> Tensor:
            whole = part.new_zeros(2 * OUT, *part.shape[1:])
            whole[at::2] = part.flip(0)  # every other row, from the last to the first
            return whole

        return take

    known = {
        "embed.weight": [Piece("embedding.weight")],
        "layers.0.proj.weight": [Piece("proj.weight")],
        "layers.0.proj.bias": [Piece("proj.bias")],
        "layers.0.left.weight": [Piece("fused.weight", rows(0))],
        "layers.0.right.weight": [Piece("fused.weight", rows(1))],
        "norm.bias": [Piece("gain")],
        "lm_head.weight": [],
        "unused.weight": [],
    }
    return known.get(name)


def loaded(folder: Path, module: Small) -> peft.Lora:
    plugin = peft.read(folder, {"decoder": (module, plan)}, torch.float64)
    plugin.attach("p")
    return plugin


X = noise(2, 5, D, seed=1, scale=1.0).double()
ROUTE = {"p": 1.0}
LAYER = "layers.0.proj"
PROJ = pair(LAYER, OUT, D)


def test_dora_is_its_formula(tmp_path: Path) -> None:
    module, magnitude = Small(), noise(OUT, seed=8, scale=1.0).abs()
    tensors = {**PROJ, f"{LAYER}.lora_magnitude_vector": magnitude, f"{LAYER}.base_layer.bias": noise(OUT, seed=9)}
    loaded(write(tmp_path, tensors, use_dora=True, bias="lora_only"), module)
    A, B = (t.double() for t in PROJ.values())
    W = module.proj.matrix() + 2 * B @ A  # alpha 6, rank 3
    W = magnitude.double()[:, None] * W / W.norm(dim=1, keepdim=True)
    torch.testing.assert_close(module.proj(X, ROUTE), X @ W.T + noise(OUT, seed=9).double())
    half = module.proj(X, {"p": 0.5})  # a blend is between the two models
    torch.testing.assert_close(half, (module.proj(X, ROUTE) + module.proj(X)) / 2)


@pytest.mark.parametrize(("alpha", "stored"), [(6, torch.bfloat16), (5, torch.float64)])
def test_tensors_stay_in_bf16_where_that_changes_nothing(tmp_path: Path, alpha: int, stored: torch.dtype) -> None:
    """alpha 6 at rank 3 is a scale of 2; 5/3 has other digits."""
    module, tensors = Small(), {name: t.bfloat16() for name, t in PROJ.items()}
    loaded(write(tmp_path, tensors, lora_alpha=alpha), module)
    update = module.proj.plugins["p"]
    assert isinstance(update, LoraPair) and {update.A.dtype, update.B.dtype} == {stored}
    A, B = (t.double() for t in tensors.values())
    torch.testing.assert_close(module.proj(X, ROUTE), module.proj(X) + alpha / 3 * X @ A.T @ B.T)


def test_parts_of_a_fused_matrix_bring_their_own(tmp_path: Path) -> None:
    """Several published matrices in one of ours: each with its A, rank, scale and DoRA's norm."""
    module = Small()
    left, right = pair("layers.0.left", OUT, D, seed=1), pair("layers.0.right", OUT, D, rank=2, seed=2)
    magnitudes = [noise(OUT, seed=seed).abs() for seed in (8, 9)]
    vectors = {f"layers.0.{s}.lora_magnitude_vector": m for s, m in zip(("left", "right"), magnitudes, strict=True)}
    ranks = {"rank_pattern": {"right": 2}, "use_rslora": True, "use_dora": True}
    loaded(write(tmp_path, left | right | vectors, **ranks), module)
    W, merged = module.fused.matrix().detach(), torch.zeros(2 * OUT, D).double()
    for at, (given, rank) in enumerate(((left, 3), (right, 2))):
        A, B = (t.double() for t in given.values())
        part = W[at::2].flip(0) + 6 / math.sqrt(rank) * B @ A
        part = magnitudes[at].double()[:, None] * part / part.norm(dim=1, keepdim=True)
        merged[at::2] = part.flip(0)
    torch.testing.assert_close(module.fused(X, ROUTE), X @ merged.T)
    only = Small()
    loaded(write(tmp_path / "left", left), only)
    y, base = only.fused(X, ROUTE), only.fused(X)
    assert torch.equal(y[..., 1::2], base[..., 1::2]) and not torch.allclose(y[..., ::2], base[..., ::2])


def test_a_table_and_the_head_that_shares_it_change_apart(tmp_path: Path) -> None:
    module, ids = Small(), torch.tensor([[1, 7], [19, 0]])
    embed, head = table("embed", VOCAB, D), pair("lm_head", VOCAB, D, seed=4)
    loaded(write(tmp_path / "a", embed), module)
    A, B = (t.double() for t in embed.values())
    weights = module.embedding.matrix().detach()
    torch.testing.assert_close(module.embedding.lookup(ids, ROUTE), (weights + 2 * (B @ A).T)[ids])
    assert torch.equal(module.embedding(X, ROUTE), module.embedding(X))
    module.embedding.detach("p")
    assert torch.equal(module.embedding.lookup(ids, ROUTE), weights[ids])
    loaded(write(tmp_path / "b", head), module)
    A, B = (t.double() for t in head.values())
    torch.testing.assert_close(module.embedding(X, ROUTE), X @ (weights + 2 * B @ A).T)
    assert torch.equal(module.embedding.lookup(ids, ROUTE), weights[ids])
    strengths = torch.tensor([0.25, 1.0])
    module.embedding.detach("p")
    loaded(tmp_path / "a", module)
    rows = module.embedding.lookup(ids, {"p": strengths})
    for b in range(2):
        torch.testing.assert_close(rows[b], module.embedding.lookup(ids[b : b + 1], {"p": float(strengths[b])})[0])


def test_a_replaced_module_acts_for_its_rows_only(tmp_path: Path) -> None:
    module = Small()
    weights, bias = noise(OUT, D, seed=5), noise(OUT, seed=6)
    saved = {f"{LAYER}.weight": weights, f"{LAYER}.bias": bias}
    loaded(write(tmp_path, saved, modules_to_save=["proj"], target_modules=["q_proj"]), module)
    wanted = X @ weights.double().T + bias.double()
    torch.testing.assert_close(module.proj(X, ROUTE), wanted)
    mixed = module.proj(X, {"p": torch.tensor([1.0, 0.0])})
    torch.testing.assert_close(mixed[0], wanted[0])
    assert torch.equal(mixed[1], module.proj(X)[1])


# --- where rows and columns go ------------------------------------------------------------------------------------

TAKES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "whole": (lambda w: w, lambda w: w),
    "rows": (lambda w: w[2:5], lambda w: w[2:5]),
    "columns": (lambda w: w[:, [3, 1]], lambda w: w[:, [3, 1]]),
    "transposed": (lambda w: w.t(), lambda w: w.t()),
    "grouped": (lambda w: w.unflatten(0, (2, 4)).transpose(0, 1).flatten(0, 1), lambda w: w[[0, 4, 1, 5, 2, 6, 3, 7]]),
    "transposed part": (lambda w: w.t()[1:4].flip(1), lambda w: w.flip(0)[:, 1:4].t()),
}


@pytest.mark.parametrize("name", TAKES)
@pytest.mark.parametrize("largest", [placement.LARGEST, 0])
def test_a_placement_does_to_the_product_what_the_plan_does_to_weights(
    name: str, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every position, and by the edges alone as for large matrices."""
    monkeypatch.setattr(placement, "LARGEST", largest)
    take, same = TAKES[name]
    A, B = noise(3, D, seed=1), noise(OUT, 3, seed=2)
    ours_A, ours_B = placement.placed(Piece("x.weight", take), OUT, D).low_rank(A, B)
    torch.testing.assert_close(ours_B @ ours_A, same(B @ A))


@pytest.mark.parametrize(
    "take", [lambda w: 2 * w, lambda w: -w, lambda w: w.flatten(), lambda w: w.reshape(6, 8), lambda w: w.exp()]
)
@pytest.mark.parametrize("largest", [placement.LARGEST, 0])
def test_what_is_no_placement_is_refused(take: Any, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "LARGEST", largest)
    with pytest.raises(UnsupportedError, match="cannot be placed"):
        placement.placed(Piece("x.weight", take), OUT, D)


# --- names --------------------------------------------------------------------------------------------------------


def config(tmp_path: Path, **options: Any) -> PeftConfig:
    return read_config(write(tmp_path, PROJ, **options))


def test_ranks_and_scales_by_suffix_or_expression(tmp_path: Path) -> None:
    found = config(
        tmp_path,
        rank_pattern={"layers.1.q_proj": 4, r"^model\.layers\.\d+\.k_proj": 5},
        alpha_pattern={"q_proj": 1.0, "k_proj|v_proj": 2.0},
    )
    ranks = {"model.layers.1.q_proj": 4, "model.layers.2.q_proj": 3, "model.layers.9.k_proj": 5, "x.layers.9.k_proj": 3}
    assert {name: found.rank_of(name) for name in ranks} == ranks
    assert found.scale_of("model.layers.1.q_proj") == 0.25 and found.scale_of("a.v_proj") == 2 / 3
    assert found.scale_of("a.o_proj") == 2.0 and found.scale_of("a.xq_proj") == 2.0
    stable = config(tmp_path / "rs", use_rslora=True, r=4, lora_alpha=3)
    assert stable.scale_of("a") == 1.5


@pytest.mark.parametrize(
    ("options", "targets", "others"),
    [
        ({"target_modules": ["proj", "a.b"]}, ["x.proj", "proj", "a.b", "x.a.b"], ["xproj", "b", "x.proj.y"]),
        ({"target_modules": r".*\.(q|v)"}, ["a.q", "a.b.v"], ["q", "a.qq"]),
        ({"target_modules": "All-Linear"}, ["a.q", "x"], []),
        ({"target_modules": ["q"], "exclude_modules": ["l.1.q"]}, ["l.2.q"], ["x.l.1.q", "l.1.q"]),
        ({"target_modules": ["q"], "exclude_modules": r"l\.1.*"}, ["x.l.1.q"], ["l.1.q"]),
        ({"target_modules": ["q"], "layers_to_transform": 1}, ["m.layers.1.q", "m.h.1.x.q"], ["m.layers.2.q", "q.x"]),
        (
            {"target_modules": ["q"], "layers_to_transform": [0, 2], "layers_pattern": "h"},
            ["m.h.2.q", "h.0.q"],
            ["m.layers.2.q", "m.h.1.q"],
        ),
        ({"target_modules": ["q", "head"], "modules_to_save": ["head"]}, ["a.q"], ["head", "a.head.q"]),
    ],
)
def test_targets(tmp_path: Path, options: dict[str, Any], targets: list[str], others: list[str]) -> None:
    found = config(tmp_path, **options)
    assert [name for name in targets + others if found.targets_module(name)] == targets


def test_targets_that_came_to_nothing_are_told(tmp_path: Path) -> None:
    plugin = loaded(write(tmp_path, PROJ, target_modules=["proj", "gate"]), Small())
    assert len(plugin.warnings) == 1 and "gate" in plugin.warnings[0] and plugin.modules == (LAYER,)


# --- what is refused ----------------------------------------------------------------------------------------------

A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
BAD: dict[str, tuple[dict[str, Tensor], dict[str, Any], type[FluvialError], str]] = {
    "no target here": (pair("other.proj", OUT, D), {}, IntegrityError, "None of the plugin's modules"),
    "some targets not here": (PROJ | pair("other.proj", OUT, D), {}, IntegrityError, "other.proj"),
    "a module that is not run": (pair("unused", OUT, D), {}, IntegrityError, "does not run"),
    "another width": (pair(LAYER, OUT, D + 1), {}, IntegrityError, "does not fit a matrix"),
    "another height": (pair("layers.0.left", OUT + 1, D), {}, IntegrityError, "do not fit"),
    "another rank": (pair(LAYER, OUT, D, rank=2), {}, IntegrityError, "says a rank of 3"),
    "half of a pair": ({A: PROJ[A]}, {}, IntegrityError, "only one of the two"),
    "not targeted": (PROJ, {"target_modules": ["q_proj"]}, IntegrityError, "does not target"),
    "no DoRA vector": (PROJ, {"use_dora": True}, IntegrityError, "use_dora"),
    "a DoRA vector": (PROJ | {f"{LAYER}.lora_magnitude_vector": torch.ones(OUT)}, {}, IntegrityError, "use_dora"),
    "no number": (PROJ | {A: PROJ[A] * math.nan}, {}, IntegrityError, "no finite numbers"),
    "integers": (PROJ | {A: PROJ[A].int()}, {}, IntegrityError, "no finite numbers"),
    "a table as a projection": (pair("embed", VOCAB, D), {}, IntegrityError, "embed is an embedding"),
    "a projection as a table": (table(LAYER, OUT, D), {}, IntegrityError, "is a projection"),
    "a norm": (PROJ | {"norm.bias": torch.zeros(D)}, {"bias": "all"}, UnsupportedError, "norm.bias"),
    "a convolution": ({A: torch.ones(3, D, 4), B: torch.ones(OUT, 3, 1)}, {}, UnsupportedError, "convolution"),
    "another base's table": (
        table("embed", VOCAB, D) | {"embed.base_layer.weight": torch.ones(VOCAB, D)},
        {},
        IntegrityError,
        "not the model's",
    ),
    "more words": (PROJ | {"embed.weight": torch.ones(VOCAB + 1, D)}, {}, IntegrityError, "tokens added"),
    "more words, trained": (
        {"embed.weight": torch.ones(VOCAB + 1, D)},
        {"modules_to_save": ["embed"]},
        IntegrityError,
        "cannot",
    ),
    "nothing": ({}, {}, IntegrityError, "changes nothing"),
    "another method": (PROJ, {"peft_type": "IA3"}, UnsupportedError, "IA3"),
    "an altered base": (PROJ, {"init_lora_weights": "pissa_niter_4"}, UnsupportedError, "pissa_niter_4"),
    "experts": (PROJ, {"target_parameters": ["experts.w"]}, UnsupportedError, "target_parameters"),
    "megatron": (PROJ, {"megatron_config": {"x": 1}}, UnsupportedError, "megatron_config"),
    "tokens": (PROJ, {"trainable_token_indices": [1]}, UnsupportedError, "trainable_token_indices"),
    "copied layers": (PROJ, {"layer_replication": [[0, 1]]}, UnsupportedError, "layer_replication"),
    "a trigger": (PROJ, {"alora_invocation_tokens": [1]}, UnsupportedError, "alora_invocation_tokens"),
    "an unknown option": (PROJ, {"use_novelty": True}, UnsupportedError, "use_novelty"),
    "a bias rule": (PROJ, {"bias": "some"}, UnsupportedError, "some"),
    "a broken expression": (PROJ, {"target_modules": "("}, IntegrityError, "damaged"),
    "a broken pattern": (PROJ, {"rank_pattern": {"(": 2}}, IntegrityError, "damaged"),
    "an endless expression": (PROJ, {"target_modules": "(.?){4000000000}x"}, UnsupportedError, "steps"),
    "an endless pattern": (PROJ, {"rank_pattern": {"(.?){4000000000}x": 2}}, UnsupportedError, "steps"),
    "a pattern of layers": (PROJ, {"layers_pattern": ["h", "(a+)+"]}, UnsupportedError, "layers_pattern"),
    "a name without end": (pair("a." * 300, OUT, D), {}, IntegrityError, "not that long"),
    "a rank of nothing": (PROJ, {"r": 0}, IntegrityError, "damaged"),
    "a wordy alpha": (PROJ, {"lora_alpha": "x"}, IntegrityError, "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_and_changes_nothing(name: str, tmp_path: Path) -> None:
    tensors, options, error, match = BAD[name]
    module = Small()
    with pytest.raises(error, match=match):
        loaded(write(tmp_path, tensors, **options), module)
    doors = [door for door in module.modules() if isinstance(door, Linear)]
    assert not any(door.plugins or getattr(door, "lookups", None) for door in doors)


def test_what_is_the_base_s_own_is_no_change(tmp_path: Path) -> None:
    """PEFT saves copies of an embedding that is targeted, and with bias="all" every bias there is."""
    module, embed = Small(), table("embed", VOCAB, D)
    copies = {"embed.base_layer.weight": module.embedding.matrix().float(), "norm.bias": torch.ones(D)}
    plugin = loaded(write(tmp_path, embed | copies, bias="all"), module)
    assert [change.door for change in plugin.changes] == [module.embedding]


def test_a_folder_that_is_no_plugin(tmp_path: Path) -> None:
    modules: peft.Modules = {"decoder": (Small(), plan)}

    def refused(error: type[FluvialError], match: str) -> None:
        with pytest.raises(error, match=match):
            peft.read(tmp_path, modules, torch.float64)

    refused(ModelNotFoundError, "adapter_config.json")
    write(tmp_path, PROJ)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    refused(IntegrityError, "damaged")
    weights.unlink()
    refused(ModelNotFoundError, "no adapter_model.safetensors")
    torch.save({PREFIX + name: tensor for name, tensor in PROJ.items()}, tmp_path / "adapter_model.bin")
    refused(UnsupportedError, "safe_serialization=True")
    save_file({"proj.lora_A.weight": torch.ones(3, D)}, weights)
    refused(IntegrityError, "PEFT's names begin with")
    for text in ("{", "[]", json.dumps({"r": 3}), "[" * 100000):
        (tmp_path / "adapter_config.json").write_text(text)
        refused(IntegrityError, "damaged")
