"""Recipes: every matrix of every architecture has a class, and a packed model is the dense model of its unpacked
matrices."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch

from fluvial.adapters import ops
from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.adapters.formats import DENSE, by_name
from fluvial.adapters.linear import Linear
from fluvial.adapters.recipes import (
    CLASSES,
    RECIPES,
    ROUNDED,
    bytes_by_format,
    class_of,
    count,
    fitting,
    matrices,
    recipe,
)
from fluvial.models.decoder import Decoder
from fluvial.models.journal import Journal
from tests.models.zoo import NAMES, VOCAB, decoder, distance, gap
from tests.parity.reference import greedy, splits

PACKED = [name for name in RECIPES if name.startswith("int") and not name.endswith(ROUNDED)]


@cache
def quantized(name: str, kind: str, dtype: torch.dtype = torch.float64) -> tuple[Decoder, Decoder]:
    """A zoo decoder packed by a recipe, and the dense one with the matrices that it unpacks."""
    packed = copy.deepcopy(decoder(name, dtype))
    for where, layer in matrices({"decoder": packed}).items():
        layer.store(recipe(kind).format(where, layer))
    dense = copy.deepcopy(packed)
    for layer in matrices({"decoder": dense}).values():
        layer.install(DENSE, {"weight": layer.matrix().to(dtype)})
    return packed, dense


@pytest.mark.parametrize("name", NAMES)
def test_every_matrix_of_every_mixer_has_a_class(name):
    kinds = {where: class_of(where, layer) for where, layer in matrices({"decoder": decoder(name)}).items()}
    assert {"tower"}.isdisjoint(kinds.values()) and kinds["decoder.embedding"] == "embedding"
    for where, kind in kinds.items():  # the table's order must not hide a gate
        gate = where.rpartition(".")[2] in ("in_proj_a", "in_proj_b", "dt_proj") or "_lora." in where
        assert (kind == "gate") == gate, where


def test_the_towers_matrices_and_the_drafting_heads_have_a_class():
    layer = Linear(32, 64)
    assert class_of("vision.blocks.0.qkv", layer) == "tower"
    assert class_of("vision.anything.at.all", layer) == "tower"
    assert class_of("draft.join", layer) == "in" and class_of("draft.block.mixer.o_proj", layer) == "out"


def test_a_matrix_that_no_class_knows_is_an_error():
    with pytest.raises(UnsupportedError, match=r"decoder\.blocks\.0\.mixer\.mystery"):
        class_of("decoder.blocks.0.mixer.mystery", Linear(32, 64))
    with pytest.raises(UsageError, match="int4-small"):
        recipe("int3")


def test_shared_keys_and_values_are_told_from_whole_ones():
    assert class_of("decoder.blocks.0.mixer.k_proj", Linear(64, 32)) == "key_value"
    assert class_of("decoder.blocks.0.mixer.k_proj", Linear(64, 64)) == "in"


def test_every_recipe_says_something_of_every_class():
    for one in RECIPES.values():
        assert one.formats.keys() == CLASSES.keys()
        assert all(by_name(format) for format in one.formats.values())


def test_a_width_gets_the_largest_groups_that_divide_it():
    widths = {256: "int4-g128", 192: "int4-g64", 96: "int4-g32", 32: "int4-g32", 48: "dense", 100: "dense"}
    assert {width: fitting("int4-g128", width).name for width in widths} == widths
    assert fitting("int4-g128z-bf16", 96).name == "int4-g32z-bf16" and fitting("bf16", 7).name == "bf16"


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", NAMES)
def test_a_packed_model_equals_the_dense_model_of_its_unpacked_matrices(name, kind):
    packed, dense = quantized(name, kind)
    assert any(layer.format is not DENSE for layer in matrices({"decoder": packed}).values())
    ids = torch.randint(VOCAB, (2, 30), generator=torch.Generator().manual_seed(1))
    assert packed.embed(ids).dtype == torch.float64
    ours, ours_end = packed(packed.embed(ids))
    theirs, their_end = dense(dense.embed(ids))
    assert gap(packed.logits(ours), dense.logits(theirs)) <= 1e-10 and distance(ours_end, their_end) <= 1e-10
    assert greedy(packed, ids[:1], 20) == greedy(dense, ids[:1], 20)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", NAMES)
def test_splits_and_commits_of_a_packed_model_equal_one_forward(name, kind):
    packed, _ = quantized(name, kind)
    x = packed.embed(torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(2)))
    whole, end = packed(x)
    for sizes in (splits(40, 3), [1] * 40):
        state, parts = None, []
        for chunk in x.split(sizes, 1):
            part, state = packed(chunk, state)
            parts.append(part)
        assert gap(torch.cat(parts, 1), whole) <= 1e-10 and distance(state, end) <= 1e-10
    _, journal = packed(x, journal=True)
    assert isinstance(journal, Journal)
    assert distance(journal.commit((17, 40)), packed(x, lengths=(17, 40))[1]) <= 1e-10


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_fp32_with_and_without_kernels(name):
    packed, dense = quantized(name, "int4", torch.float32)
    ids = torch.randint(VOCAB, (1, 30), generator=torch.Generator().manual_seed(4))
    with ops.reference_only():
        exact = dense.logits(dense(dense.embed(ids))[0])
        assert gap(packed.logits(packed(packed.embed(ids))[0]), exact) <= 1e-4
    assert gap(packed.logits(packed(packed.embed(ids))[0]), exact) <= 1e-4
    assert greedy(packed, ids) == greedy(dense, ids)


def test_half_precision_under_a_wide_model():
    packed, dense = quantized("everything", "bf16", torch.float32)
    ids = torch.randint(VOCAB, (1, 12), generator=torch.Generator().manual_seed(5))
    assert packed.embed(ids).dtype == torch.float32
    assert gap(packed(packed.embed(ids))[0], dense(dense.embed(ids))[0]) <= 1e-6


def test_the_fingerprint_names_the_format():
    """Two formats may hold the same bytes."""
    one = copy.deepcopy(decoder("transformer", torch.float32))
    prints = {one.fingerprint()}
    for format in ("int4-g32", "int8-g32", "fp32", "bf16", "fp16"):
        other = copy.deepcopy(decoder("transformer", torch.float32))
        other.blocks[0].get_submodule("mixer.q_proj").store(by_name(format))
        prints.add(other.fingerprint())
    assert len(prints) == 6


def test_bytes_and_parameters_are_counted():
    packed, dense = quantized("delta_hybrid", "int4", torch.float32)
    sizes = bytes_by_format({"decoder": packed})
    assert sum(sizes.values()) == sum(t.nbytes for t in packed.state_dict().values())
    assert set(sizes) == {"int4-g32", "int8-g32", "dense"}
    assert count({"decoder": packed}) == count({"decoder": dense}) == sum(p.numel() for p in dense.parameters())


@pytest.mark.parametrize("kind", PACKED)
def test_rounding_recipes_store_the_same_and_leave_gates_alone(kind):
    plain, eight = (quantized("delta_hybrid", name, torch.float32)[0] for name in (kind, kind + ROUNDED))
    layers = matrices({"decoder": eight})
    for name, layer in matrices({"decoder": plain}).items():
        gate = class_of(name, layer) == "gate" or layer.format is DENSE
        assert layers[name].format.name == layer.format.name + ("" if gate else ROUNDED)
        assert all(torch.equal(part, layers[name].parts[key]) for key, part in layer.parts.items())
    assert plain.fingerprint() != eight.fingerprint()
