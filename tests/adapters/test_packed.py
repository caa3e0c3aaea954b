"""Quantized loading of every family, packed folders, the memory plan, and how much memory loading takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fluvial
from fluvial.adapters import weights
from fluvial.adapters.errors import FluvialError, IntegrityError, UnsupportedError, UsageError
from fluvial.adapters.formats import by_name
from fluvial.adapters.recipes import RECIPES, Recipe, formats_in, matrices, recipe
from fluvial.engine import packing
from fluvial.engine.loading import Parts, load_parts
from fluvial.engine.plan import plan
from tests.engine.tiny import write_model
from tests.parity import test_hybrids, test_mamba, test_qwen3_5, test_rwkv, test_transformers
from tests.parity.test_loading import CONFIG, tensors_of, write


def _saved(made: Callable[[], Any]) -> Callable[[Path], None]:
    return lambda folder: made().save_pretrained(folder)


def _qwen3_next(folder: Path) -> None:
    import transformers

    _, options = test_qwen3_5.TEXTS["qwen3_next"]
    config = transformers.Qwen3NextConfig(**{**test_qwen3_5.TEXT, **options})
    transformers.Qwen3NextForCausalLM(config).save_pretrained(folder)


def _rwkv(folder: Path) -> None:
    folder.mkdir()
    torch.save(test_rwkv.official(), folder / "model.pth")


def _pebble(folder: Path) -> None:
    folder.mkdir()
    write_model(folder, "delta")


HYBRIDS = ("lfm2", "granitemoehybrid", "falcon_h1", "olmo_hybrid", "bamba", "nemotron_h")
FAMILIES: dict[str, Callable[[Path], Any]] = {
    **{name: lambda folder, name=name: test_hybrids.published(name, folder) for name in HYBRIDS},
    **{name: _saved(test_mamba.FAMILIES[name]) for name in ("mamba", "mamba2", "falcon_mamba")},
    **{
        name: _saved(lambda name=name: test_transformers.reference(name))
        for name in ("llama-biases", "qwen2", "qwen3", "smollm3")
    },
    "qwen3_next": _qwen3_next,
    "qwen3_5": test_qwen3_5.Seen,
    "rwkv7": _rwkv,
    "pebble": _pebble,
}


def modules(parts: Parts) -> dict[str, Any]:
    named = {"decoder": parts.decoder, "vision": parts.tower, "draft": parts.draft_head}
    return {key: module for key, module in named.items() if module is not None}


def tensors(parts: Parts) -> dict[str, torch.Tensor]:
    return {f"{key}.{name}": t for key, module in modules(parts).items() for name, t in module.state_dict().items()}


def same(a: Parts, b: Parts) -> bool:
    left, right = tensors(a), tensors(b)
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("family") / "model"
    FAMILIES[request.param](place)
    return place


def test_quantized_while_loading_packed_and_planned(folder: Path, tmp_path: Path) -> None:
    """The same parts from: loading and then packing, packing while loading, and a packed folder; as planned."""
    chosen, dense = recipe("int4-small"), load_parts(folder)
    loaded = load_parts(folder, recipe=chosen)
    for name, layer in matrices(modules(dense)).items():
        layer.store(chosen.format(name, layer))
    assert same(dense, loaded) and formats_in(modules(loaded)), "nothing was packed"
    packed = load_parts(packing.pack(folder, tmp_path / "packed", "int4-small"))
    assert same(packed, loaded) and packed.recipe == loaded.recipe == "int4-small"
    assert packed.decoder.fingerprint() == loaded.decoder.fingerprint()
    for place, one in ((folder, chosen), (tmp_path / "packed", None)):
        planned = plan(place, one, context=1200)
        assert sum(planned.weights.values()) == sum(t.nbytes for t in tensors(loaded).values())
    state = loaded.decoder.init_state()
    ids = torch.zeros(1, 1200, dtype=torch.long)
    with torch.no_grad():
        for chunk in ids.split(512, 1):
            _, state = loaded.decoder(loaded.decoder.embed(chunk), state)
    assert (planned.state, planned.tape) == (state.nbytes("recurrent"), state.nbytes("tape"))


@pytest.mark.parametrize("kind", [name for name in RECIPES if name != "int4-small"])
def test_every_recipe_packs(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path / "model", tokenizer=True)
    model = fluvial.load_model(folder, quant=kind)
    packed = fluvial.load_model(packing.pack(folder, tmp_path / "packed", kind))
    assert packed.fingerprint() == model.fingerprint() and packed.recipe == model.explain()["quant"] == kind
    assert model.decoder.dtype == packed.decoder.dtype == recipe(kind).dtype
    assert model.explain()["weights"] == packed.explain()["weights"]
    assert model.explain()["parameters"] == fluvial.load_model(folder).explain()["parameters"]
    ids = torch.arange(20)[None]
    assert torch.equal(model(ids)[0], packed(ids)[0])
    assert fluvial.load(str(tmp_path / "packed")).session().ask("the user asked", max_tokens=3) is not None
    wide = fluvial.load_model(folder, quant=kind, dtype="fp64")
    assert wide.decoder.dtype == torch.float64 and wide.explain()["quant"] == kind


@pytest.mark.parametrize(("packed", "wanted"), [("int4-small", "int4-small-a8"), ("int8-a8", "int8")])
def test_a_packed_folder_serves_both_ways_to_multiply(tmp_path: Path, packed: str, wanted: str) -> None:
    folder = write(tmp_path / "model", tokenizer=True)
    target = packing.pack(folder, tmp_path / "packed", packed)
    model, whole = (fluvial.load_model(place, quant=wanted) for place in (target, folder))
    assert model.fingerprint() == whole.fingerprint() and model.recipe == model.explain()["quant"] == wanted
    assert plan(target, recipe(wanted)).recipe == wanted
    assert fluvial.load_model(target).recipe == packed
    ids = torch.arange(40)[None]
    assert torch.equal(model(ids)[0], whole(ids)[0])
    assert not torch.equal(model(ids)[0], fluvial.load_model(target)(ids)[0])


def test_sessions_of_other_recipes_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", tokenizer=True)
    session = fluvial.load(str(folder), quant="int4").session()
    session.push("something")
    session.save(tmp_path / "s")
    assert fluvial.load(str(folder), quant="int4").load_session(tmp_path / "s") is not None
    for other in ("int8", "fp32", None):
        with pytest.raises(IntegrityError, match="another model"):
            fluvial.load(str(folder), quant=other).load_session(tmp_path / "s")


# packed folders


def test_packing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "model", tokenizer=True)
    (folder / "modeling.py").write_text("print('no')")
    target = packing.pack(folder, tmp_path / "packed", "int8")
    names = {path.name for path in target.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names and "modeling.py" not in names
    with pytest.raises(UsageError, match="exists"):
        packing.pack(folder, target, "int8")
    with pytest.raises(UsageError, match="no folder"):
        packing.pack(folder, tmp_path / "no" / "packed", "int8")
    with pytest.raises(UsageError, match="int4-small"):
        packing.pack(folder, tmp_path / "other", "int7")
    with pytest.raises(UnsupportedError, match="packed already, as int8"):
        packing.pack(target, tmp_path / "other", "int4")
    bad = load_file(folder / "model.safetensors")
    bad["model.layers.1.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(bad, folder / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"blocks\.3\.mixer\.up_proj\.weight.*finite"):
        packing.pack(folder, tmp_path / "other", "int8")
    monkeypatch.setattr(packing, "write", lambda *_: (_ for _ in ()).throw(OSError("No space left")))
    with pytest.raises(UsageError, match="No space left"):
        packing.pack(folder, tmp_path / "other", "int8")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "packed"}, "something half written was left"


def _changed(config: dict[str, Any], **manifest: Any) -> dict[str, Any]:
    return config | {"fluvial_quant": config["fluvial_quant"] | manifest}


@pytest.mark.parametrize(
    ("change", "kind", "named"),
    [
        ({"formats": {"decoder.blocks.9.mixer.q_proj": "int8-g32"}}, IntegrityError, "blocks.9"),
        ({"formats": {"decoder.norm": "int8-g32"}}, IntegrityError, "decoder.norm"),
        ({"formats": {"decoder.embedding": "int3"}}, UnsupportedError, "int3"),
        ({"formats": {"decoder.embedding": "int8-g128"}}, UnsupportedError, "32 columns"),
        ({"formats": {}}, IntegrityError, "unknown tensors"),
        ({"formats": 3}, IntegrityError, "damaged"),
        ({"version": 99}, UnsupportedError, "99"),
    ],
)
def test_manifests_that_do_not_fit(
    tmp_path: Path, change: dict[str, Any], kind: type[FluvialError], named: str
) -> None:
    target = packing.pack(write(tmp_path / "model"), tmp_path / "packed", "int8")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(_changed(config, **change)))
    with pytest.raises(kind, match=named):
        load_parts(target)


def test_a_packed_file_that_is_damaged(tmp_path: Path) -> None:
    target = packing.pack(write(tmp_path / "model"), tmp_path / "packed", "int8")
    for kind in ("int4", "int4-a8"):
        with pytest.raises(UnsupportedError, match=f"packed as int8, not {kind}"):
            load_parts(target, recipe=recipe(kind))
    held = load_file(target / "model.safetensors")
    part = "decoder.blocks.0.mixer.q_proj.q"
    for broken in (held[part].to(torch.int16), held[part][:-1]):
        save_file({**held, part: broken.contiguous()}, target / "model.safetensors")
        with pytest.raises(IntegrityError, match="q_proj"):
            load_parts(target)
    save_file({name: tensor for name, tensor in held.items() if name != part}, target / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"lacks.*q_proj\.q"):
        load_parts(target)


def test_foreign_quantized_weights_stay_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", quantization_config={"quant_method": "awq"})
    for given in (None, recipe("int4")):
        with pytest.raises(UnsupportedError, match="awq"):
            load_parts(folder, recipe=given)


def test_a_matrix_that_no_recipe_knows_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fluvial.adapters import recipes

    monkeypatch.delitem(recipes.CLASSES, "down")
    with pytest.raises(UnsupportedError, match="down_proj"):
        load_parts(write(tmp_path / "model"), recipe=recipe("int4"))


def test_parts_are_aligned_and_mapped(tmp_path: Path) -> None:
    config = {"hidden_size": 64, "intermediate_size": 128}
    parts = load_parts(packing.pack(write(tmp_path / "model", **config), tmp_path / "packed", "int4"))
    for layer in matrices(modules(parts)).values():
        assert all(part.data_ptr() % 32 == 0 for part in layer.parts.values() if part.nbytes % 64 == 0)
    storages = {
        part.untyped_storage().data_ptr()
        for layer in matrices(modules(parts)).values()
        for part in layer.parts.values()
    }
    assert storages and parts.decoder.blocks[0].get_submodule("mixer.q_proj").format is by_name("int4-g32")


# the plan


def test_plans_of_precisions_images_and_mistakes(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    wide, half = plan(folder), plan(folder, recipe("bf16"))
    assert sum(wide.weights.values()) == 2 * sum(half.weights.values())
    assert plan(folder, dtype=torch.float64, context=100).tape == 2 * plan(folder, context=100).tape > 0
    assert wide.total == sum(wide.weights.values()) + wide.state + wide.tape + wide.workspace and wide.recipe is None
    pebble = write_model(tmp_path, "transformer")
    seen = plan(pebble, context=10, images=3)
    assert seen.tokens == 10 + 3 * 64 and seen.workspace > 0
    with pytest.raises(UnsupportedError, match="text only"):
        plan(folder, images=1)
    with pytest.raises(UsageError, match="-1"):
        plan(folder, context=-1)


# memory


@pytest.mark.parametrize("kind", ["int4-g32", "int8-g64", "bf16"])
def test_a_large_matrix_is_packed_strip_by_strip(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The same parts as at once, and each strip is let go behind it."""
    matrix, done = torch.randn(50, 64, dtype=torch.bfloat16), list[torch.Tensor]()
    monkeypatch.setattr(weights, "STRIP", 7 * matrix[0].nbytes)
    parts, whole = weights.packed(matrix, by_name(kind), "a", done.append), by_name(kind).pack(matrix)
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)
    assert [len(strip) for strip in done] == [7] * 7 + [1] and torch.equal(torch.cat(done), matrix)
    matrix[49, 3] = float("nan")
    if kind != "bf16":
        with pytest.raises(IntegrityError, match=r"^a: "):
            weights.packed(matrix, by_name(kind), "a", done.append)


_MEASURE = """
import sys, torch
from pathlib import Path
from fluvial.adapters.recipes import recipe
from fluvial.engine.loading import load_parts
torch.set_num_threads(1)
def memory(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
chosen = recipe(sys.argv[3]) if sys.argv[3] else None
load_parts(Path(sys.argv[1]), recipe=chosen)  # whatever is imported late
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = memory("VmRSS")
decoder = load_parts(Path(sys.argv[2]), recipe=chosen).decoder
loaded = memory("VmHWM") - before
decoder.fingerprint()  # reads every byte
print(loaded, memory("VmHWM") - before, sum(t.nbytes for t in decoder.state_dict().values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_one_tensor_above_the_packed_model(tmp_path: Path) -> None:
    """Peak resident memory, pages of mapped files counted, in a fresh process; then of the packed folder."""
    size = {"vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 1}
    config = CONFIG | size | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
    small, large = write(tmp_path / "small"), tmp_path / "large"
    large.mkdir()
    (large / "config.json").write_text(json.dumps(config))
    held = tensors_of(config, torch.bfloat16)
    save_file(held, large / "model.safetensors")
    largest = max(tensor.nbytes for tensor in held.values())
    del held
    places = {"int4": (small, large)}
    places[""] = tuple(packing.pack(place, tmp_path / f"{place.name}-packed", "int4") for place in places["int4"])
    for quant, (first, second) in places.items():
        command = [sys.executable, "-c", _MEASURE, str(first), str(second), quant]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        loaded, read, model = map(int, done.stdout.split())
        sizes = ", ".join(f"{size / 2**20:.1f}" for size in (model, loaded, read))
        print(f"{quant or 'packed'}: model, peak of loading, peak of reading all in MB: {sizes}")
        if quant:
            assert 7 << 20 < model < 16 << 20 and loaded <= model + largest + (8 << 20)
        else:
            assert loaded < 4 << 20, "a mapped file is not read before it is used"
            assert read <= model + (8 << 20)


def test_every_recipe_keeps_small_things_wide(folder: Path) -> None:
    for kind in ("int8", "int4", "int4-small"):
        chosen: Recipe = recipe(kind)
        parts = load_parts(folder, recipe=chosen)
        for name, tensor in parts.decoder.state_dict().items():
            layer = parts.decoder.get_submodule(name.rpartition(".")[0])
            if not hasattr(layer, "parts"):
                assert tensor.dtype == torch.float32, name
