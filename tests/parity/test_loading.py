"""Loading: names to folders, hub names, shards, defaults for generation, and how much memory it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import fluvial
from fluvial.adapters.errors import IntegrityError, ModelNotFoundError
from fluvial.engine.generation import Generation
from fluvial.engine.resolve import bundled, resolve
from fluvial.engine.sampling import SamplingParams
from tests.engine.small_tokenizers import CHATML, byte_level, save
from tests.parity.reference import load, logits, tokens

CONFIG = {
    "model_type": "qwen3",
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "tie_word_embeddings": True,
}


def tensors_of(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Random tensors by their published names for a qwen3 config."""
    generator = torch.Generator().manual_seed(3)
    d, ff, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (config["vocab_size"], d), "norm": (d,)}
    for i in range(config["num_hidden_layers"]):
        attention = {"q_proj": (q, d), "k_proj": (kv, d), "v_proj": (kv, d), "o_proj": (d, q)}
        shapes |= {f"layers.{i}.self_attn.{name}": shape for name, shape in attention.items()}
        shapes |= {f"layers.{i}.self_attn.{name}_norm": (width,) for name in "qk"}
        shapes |= {f"layers.{i}.{name}_layernorm": (d,) for name in ("input", "post_attention")}
        feed_forward = {"gate_proj": (ff, d), "up_proj": (ff, d), "down_proj": (d, ff)}
        shapes |= {f"layers.{i}.mlp.{name}": shape for name, shape in feed_forward.items()}
    return {
        f"model.{name}.weight": (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).to(dtype)
        for name, shape in shapes.items()
    }


def write(folder: Path, *, tokenizer: bool = False, template: str | None = CHATML, **config: Any) -> Path:
    """A random qwen3 checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | config
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors_of(config), folder / "model.safetensors")
    if tokenizer:
        chat = {} if template is None else {"chat_template": template}
        save(folder, byte_level(), eos_token="<|im_end|>", **chat)
    return folder


# names


def test_paths_and_bundled_names_never_ask_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "org" / "name")
    assert resolve(folder) == resolve(str(folder)) == folder
    assert resolve("org/name") == Path("org/name"), "a folder goes before the hub"
    assert all((resolve(name) / "config.json").is_file() for name in bundled())
    (tmp_path / "empty" / "dir").mkdir(parents=True)
    for name in ("nonsense", "pebble/nonsense", "a/b/c", "../x", "empty/dir", Path("no/path"), "org/na me", ""):
        with pytest.raises(ModelNotFoundError, match="pebble"):
            resolve(name)


def _cached(monkeypatch: pytest.MonkeyPatch, cache: Path, repository: str, **options: Any) -> Path:
    """The hub's cache with one repository in it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    place, commit = cache / f"models--{repository.replace('/', '--')}", "0" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    return write(place / "snapshots" / commit, **options)


def test_a_hub_name_is_found_in_the_cache_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _cached(monkeypatch, tmp_path, "org/tiny.model-1", tokenizer=True)
    assert resolve("org/tiny.model-1", offline=True) == folder
    model = fluvial.load_model("org/tiny.model-1", offline=True)
    assert model.name == "org/tiny.model-1" and model.template is not None


@pytest.mark.parametrize("by", ["flag", "variable"])
def test_offline_and_not_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", by == "variable")
    with pytest.raises(ModelNotFoundError, match=r"org/nothing.*offline"):
        resolve("org/nothing", offline=by == "flag")


def test_what_the_hub_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files and safetensors, `pytorch_model.bin` where there are none; no code and no other copies."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    files = ["config.json", "model-1.safetensors", "pytorch_model.bin", "modeling.py", "tokenizer.json"]
    files += ["onnx/model.safetensors", "consolidated.safetensors", "chat_template.jinja", "a.pth", "README.md"]
    here: list[str] = []

    def download(repository: str, *, allow_patterns: Any, ignore_patterns: Any, local_files_only: bool) -> str:
        assert repository == "org/name" and not local_files_only
        for name in filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (tmp_path / name).write_text("{}")
            here.append(name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert resolve("org/name", weights=False) == tmp_path
    small = {"chat_template.jinja", "config.json", "tokenizer.json"}
    assert set(here) == small | {"README.md"}, "the model card says the license"
    here.clear()
    resolve("org/name")
    assert set(here) == small | {"model-1.safetensors"}
    files.remove("model-1.safetensors")
    (tmp_path / "model-1.safetensors").unlink()
    resolve("org/name")
    assert "pytorch_model.bin" in here


def test_what_the_hub_answers_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    names = {"GatedRepoError": "terms", "RepositoryNotFoundError": "no such repository", "ConnectError": "connection"}
    for kind, word in names.items():

        def fails(*_: Any, kind: str = kind, **__: Any) -> None:
            raise type(kind, (OSError,), {})("401 Client Error.\nmore")

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
        with pytest.raises(ModelNotFoundError, match=word):
            resolve("org/name")


# folders


def test_shards_give_the_same(tmp_path: Path) -> None:
    whole, folder = write(tmp_path / "whole"), tmp_path / "shards"
    folder.mkdir()
    tensors = load_file(whole / "model.safetensors")
    places = {name: f"model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for shard in set(places.values()):
        save_file({name: tensor for name, tensor in tensors.items() if places[name] == shard}, folder / shard)
    (folder / "config.json").write_text((whole / "config.json").read_text())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    ids = tokens(CONFIG["vocab_size"])
    assert torch.equal(logits(load(folder), ids)[0], logits(load(whole), ids)[0])
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="00002-of-00003"):
        load(folder)


def test_a_loaded_transformer_chats(tmp_path: Path) -> None:
    """The whole path: tokenizer, template, session; random weights say noise."""
    folder = write(tmp_path / "m", tokenizer=True)
    model = fluvial.load_model(folder, dtype="bf16")
    assert model.decoder.dtype == torch.bfloat16
    answer = fluvial.load(str(folder)).session().ask("the user asked", max_tokens=4)
    assert answer is not None
    assert model.explain()["blocks"] == {"attention": 2, "swiglu": 2}


def test_a_base_model_has_no_template(tmp_path: Path) -> None:
    assert fluvial.load_model(write(tmp_path / "m", tokenizer=True, template=None)).template is None


# defaults for generation


def test_generation_defaults(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", tokenizer=True)
    assert fluvial.load_model(folder).generation.sampling.greedy
    said = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [2, 0]}
    (folder / "generation_config.json").write_text(json.dumps(said | {"min_p": None, "max_new_tokens": 99}))
    model = fluvial.load_model(folder)
    assert model.generation.sampling == SamplingParams(temperature=0.6, top_k=20, top_p=0.95)
    assert model.generation.eos_ids == model.tokenizer.eos_ids == {0, 2} and model.generation.max_tokens == 99


@pytest.mark.parametrize(
    ("said", "sampling"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, SamplingParams()),  # without do_sample Transformers is greedy too
        ({"do_sample": True}, SamplingParams(temperature=1.0, top_k=50)),
        ({"do_sample": False, "repetition_penalty": 1.1}, SamplingParams(repetition_penalty=1.1)),
    ],
)
def test_generation_reads_what_transformers_reads(
    tmp_path: Path, said: dict[str, Any], sampling: SamplingParams
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert Generation.load(tmp_path).sampling == sampling


@pytest.mark.parametrize(
    "said", [{"do_sample": True, "temperature": -1}, {"repetition_penalty": "x"}, {"max_new_tokens": 0}, []]
)
def test_generation_that_makes_no_sense(tmp_path: Path, said: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    with pytest.raises(IntegrityError, match="generation_config"):
        Generation.load(tmp_path)


# memory

_MEASURE = """
import resource, sys, torch
from pathlib import Path
from fluvial.engine.loading import load_parts
torch.set_num_threads(1)
linux = sys.platform == "linux"
def memory(key):
    if not linux:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
small, large, dtype = Path(sys.argv[1]), Path(sys.argv[2]), getattr(torch, sys.argv[3])
load_parts(small, dtype)  # whatever is imported late
if linux:
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = memory("VmRSS")
decoder = load_parts(large, dtype).decoder
print(memory("VmHWM") - before, sum(p.nbytes for p in decoder.parameters()), int("huggingface_hub" in sys.modules))
"""


@pytest.mark.parametrize(("stored", "dtype"), [("float32", "float32"), ("bfloat16", "float32")])
def test_loading_takes_one_tensor_above_the_model(tmp_path: Path, stored: str, dtype: str) -> None:
    """Peak resident memory, pages of mapped files counted, while about 100 MB are loaded in a fresh process."""
    size = {"vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 3}
    config = CONFIG | size | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
    small, large = write(tmp_path / "small"), tmp_path / "large"
    large.mkdir()
    (large / "config.json").write_text(json.dumps(config))
    tensors = tensors_of(config, getattr(torch, stored))
    save_file(tensors, large / "model.safetensors")
    largest = max(tensor.nbytes for tensor in tensors.values())
    del tensors
    command = [sys.executable, "-c", _MEASURE, str(small), str(large), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, model, hub = map(int, done.stdout.split())
    print(f"loading {stored} as {dtype}: model {model / 2**20:.1f} MB, peak {(peak - model) / 2**20:+.1f} MB above it")
    assert model > (100 << 20) and not hub, "the hub's client is for hub names"
    assert peak <= model + largest + (6 << 20)
