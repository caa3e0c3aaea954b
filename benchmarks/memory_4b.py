"""Peak resident memory of a 4B vision-language model (Qwen3.5-4B's shape, random weights, drafting head too) packed as
`int4-small`: load, about 1,000 tokens of text, one image of a megapixel, an answer of four tokens.

python benchmarks/memory_4b.py --json benchmarks/memory_4b.json

Measured with getrusage in a fresh process each: a packed folder, mapped, which another process filled with random
codes; and `--quant` while loading, from bf16 shards. All 9.3 GB of these never exist at once: another process writes
one when it is reached, and it is removed when it has been read. Pages of mapped files count. The tokenizer is a random
one of 248k entries.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TEXT: dict[str, Any] = {
    "hidden_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "vocab_size": 248320,
}
VISION: dict[str, Any] = {
    "depth": 24,
    "hidden_size": 1024,
    "num_heads": 16,
    "intermediate_size": 4096,
    "out_hidden_size": 2560,
    "num_position_embeddings": 2304,
}
# about a fiftieth of it, in the same proportions: for a test
SMALL_TEXT = TEXT | {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1536, "vocab_size": 32768}
SMALL_TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128}
SMALL_TEXT |= {"linear_num_key_heads": 4, "linear_num_value_heads": 8}
SMALL_VISION = VISION | {"depth": 6, "hidden_size": 256, "num_heads": 4, "intermediate_size": 1024}
SMALL_VISION |= {"out_hidden_size": 512}
SHARD = 1 << 29  # bytes
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}{{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- else %}{{- part.text }}{%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


# --- the checkpoint ---------------------------------------------------------------------------------------------------


def published(text: dict[str, Any], vision: dict[str, Any]) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """config.json, and the shape of each tensor by its published name."""
    import torch
    import transformers

    config = transformers.Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=True)
    with torch.device("meta"):
        model = transformers.Qwen3_5ForConditionalGeneration(config)
    shapes = {name: list(t.shape) for name, t in model.state_dict().items() if name != "lm_head.weight"}
    layer = "model.language_model.layers.3."  # the drafting head's layer is one with full attention
    head = {n.replace(layer, "mtp.layers.0."): shape for n, shape in shapes.items() if n.startswith(layer)}
    width = text["hidden_size"]
    head |= {f"mtp.{name}.weight": [width] for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    return config.to_dict(), shapes | head | {"mtp.fc.weight": [width, 2 * width]}


def write_folder(folder: Path, text: dict[str, Any], vision: dict[str, Any], shard: int = SHARD) -> None:
    """All of the checkpoint but the shards."""
    config, shapes = published(text, vision)
    folder.mkdir()
    files, size = dict[str, str](), 0
    for name, shape in sorted(shapes.items()):
        size += 2 * math.prod(shape)
        files[name] = f"model-{size // shard:05}.safetensors"
    config["image_token_id"] = text["vocab_size"] - 1
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "shapes.json").write_text(json.dumps(shapes))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    _write_tokenizer(folder, text["vocab_size"])


def _write_tokenizer(folder: Path, vocab: int) -> None:
    """Byte-level BPE with as many entries as the model has rows."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in alphabet for b in alphabet]
    triples = ((a + b, c) for a, b in pairs for c in alphabet)
    merges = [*pairs, *(triple for triple, _ in zip(triples, range(vocab), strict=False))]
    merges = merges[: vocab - len(alphabet) - len(CONTROLS)]
    entries = {piece: i for i, piece in enumerate([*alphabet, *(a + b for a, b in merges)])}
    made = Tokenizer(models.BPE(entries, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in CONTROLS])
    made.save(str(folder / "tokenizer.json"))


def write_shard(path: Path) -> None:
    """One shard of random bf16 weights; the same each time."""
    import torch
    from safetensors.torch import save_file

    shapes = json.loads((path.parent / "shapes.json").read_text())
    files = json.loads((path.parent / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {}
    for name in (name for name, file in files.items() if file == path.name):
        draw = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest()))
        tensor = torch.empty(shapes[name], dtype=torch.bfloat16).normal_(0, 0.02, generator=draw)
        tensors[name] = (
            tensor if len(shapes[name]) > 1 else tensor + (name.endswith("norm.weight") and ".visual" in name)
        )
    save_file(tensors, path)


def stream_shards() -> None:
    """From now on shards are made by another process when a reader comes to them, and removed behind it."""
    from torch import Tensor

    from fluvial.adapters.weights import Weights, open_safetensors
    from fluvial.engine import loading

    class Streamed(Weights):
        def __init__(self, folder: Path) -> None:
            self.folder = folder
            files = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
            self._file_of = {name: folder / file for name, file in files.items()}

        def tensors(self) -> Iterator[tuple[str, Tensor]]:
            for path in sorted(set(self._file_of.values())):
                self._reading = path
                subprocess.run([sys.executable, __file__, "--task", "shard", str(path)], check=True)
                try:
                    with open_safetensors(path) as file:
                        names = list(file.keys())
                    for name in names:
                        with open_safetensors(path) as file:
                            tensor = file.get_tensor(name)
                        yield name, tensor
                finally:
                    path.unlink()

    loading.opened = Streamed


# --- the measurement --------------------------------------------------------------------------------------------------


def resident() -> dict[str, float]:
    """MB: the peak so far by getrusage, and what is resident now: anonymous memory, and pages of files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"now": "VmRSS", "anonymous": "RssAnon", "files": "RssFile"}
    return {
        key: round(size * 1024 / 1e6)
        for key, size in [("peak", peak), *((k, int(status[v].split()[0])) for k, v in found.items())]
    }


def measure(folder: Path, quant: str, kv: str, tokens: int, side: int) -> None:
    """Prints one JSON line a stage."""
    import numpy as np
    import torch

    import fluvial
    import fluvial.engine.engine

    if quant:
        stream_shards()
    began = time.perf_counter()

    def stage(name: str, **more: Any) -> None:
        row = json.dumps({"stage": name, **resident(), "seconds": round(time.perf_counter() - began), **more})
        print(row, flush=True)
        print(row, file=sys.stderr, flush=True)

    stage("interpreter and torch")
    engine = fluvial.load(folder, quant=quant or None, kv=kv)
    stage("load", weights=engine.explain()["weights"])
    session = engine.session()
    pushed = session.push("q" + " \x01" * tokens)  # a token each
    stage("text", tokens=pushed.tokens)
    pixels = np.random.default_rng(0).integers(0, 256, (side // 16, side // 16, 3), np.uint8)
    pushed = session.push(fluvial.Image(pixels.repeat(16, 0).repeat(16, 1)))
    stage("image", tokens=pushed.tokens)
    list(session.ask("What is it?", max_tokens=4))
    stage("answer", tokens=session.position, state=session.nbytes("recurrent"), tape=session.nbytes("tape"))
    assert torch.isfinite(session.snapshot().feed.logits).all()


def make(folder: Path, small: bool) -> None:
    write_folder(folder, *((SMALL_TEXT, SMALL_VISION) if small else (TEXT, VISION)))


def write_packed(plain: Path, folder: Path, quant: str) -> None:
    """What packing that checkpoint would write, with random codes, in seconds instead of minutes."""
    import torch
    from safetensors.torch import save_file

    from fluvial.adapters import packed
    from fluvial.adapters.recipes import recipe
    from fluvial.engine.loading import filled_modules, read_shapes, stored_names

    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    shapes = read_shapes(plain)
    modules = {key: module for key, (module, _) in filled_modules(shapes, stored_names(plain)).items()}
    manifest = packed.Manifest(quant, packed.formats_of(recipe(quant), modules))
    config = shapes.config | {packed.KEY: manifest.as_json()}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = dict[str, torch.Tensor]()
    for name, empty in packed.stored(modules, manifest.formats).items():
        tensor = torch.empty_like(empty, device="cpu")
        if tensor.is_floating_point():
            tensors[name] = tensor.fill_(0.001 if name.endswith("scale") else 0.02 if tensor.ndim > 1 else 1.0)
        else:
            tensors[name] = tensor.random_()
    save_file(tensors, folder / packed.FILE)


def fresh(task: str, *arguments: object) -> list[dict[str, Any]]:
    """What a task prints in a process of its own, whose peak begins with this small one's."""
    command = [sys.executable, __file__, "--task", task, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


TASKS: dict[str, Callable[..., None]] = {
    "make": lambda folder, small: make(Path(folder), small == "True"),
    "shard": lambda path: write_shard(Path(path)),
    "pack": lambda plain, folder, quant: write_packed(Path(plain), Path(folder), quant),
    "measure": lambda folder, quant, kv, tokens, side: measure(Path(folder), quant, kv, int(tokens), int(side)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a fiftieth of the size")
    parser.add_argument("--quant", default="int4-small")
    parser.add_argument("--kv", default="exact", help="attention's rows: exact, int8 or window:N")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1024, help="of the image, in pixels")
    parser.add_argument("--folder", type=Path, help="where to put, or find, the folders bf16 and packed")
    parser.add_argument("--only", choices=("packed", "streamed"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--task", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        return TASKS[args.task[0]](*args.task[1:])
    with tempfile.TemporaryDirectory() as temporary:
        plain, packed = ((args.folder or Path(temporary)) / name for name in ("bf16", "packed"))
        if not plain.is_dir():
            fresh("make", plain, args.small)
        results: dict[str, list[dict[str, Any]]] = {}
        if args.only != "streamed":
            if not packed.is_dir():
                fresh("pack", plain, packed, args.quant)
            results["packed"] = fresh("measure", packed, "", args.kv, args.tokens, args.side)
        if args.only != "packed":
            results["streamed"] = fresh("measure", plain, args.quant, args.kv, args.tokens, args.side)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
