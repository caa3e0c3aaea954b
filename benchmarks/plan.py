"""`fluvial models plan` against what is allocated: bytes by part, on random models of a few hundred MB.

python benchmarks/plan.py

The truth: weights, state and tape are counted on the loaded model; the workspace is the most that the allocator of
torch gave out during the session's last chunk (its profiler's record), above what stays.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fluvial.adapters import chips
from fluvial.adapters.packed import formats_of, prepare
from fluvial.adapters.recipes import recipe
from fluvial.engine.loading import read_shapes
from fluvial.engine.plan import MemoryPlan, plan
from fluvial.engine.stretch import chunk_size
from fluvial.models.decoder import Decoder

QWEN: dict[str, Any] = {
    "model_type": "qwen3_5_text",
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "intermediate_size": 3584,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "rms_norm_eps": 1e-6,
    "vocab_size": 65536,
    "tie_word_embeddings": True,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3.5": QWEN,
    "qwen3": QWEN | {"model_type": "qwen3"},
    "rwkv7": {"model_type": "rwkv7", "hidden_size": 1024, "num_hidden_layers": 8, "head_dim": 64}
    | {"intermediate_size": 4096, "vocab_size": 65536},
    "mamba2": {"model_type": "mamba2", "hidden_size": 1024, "num_hidden_layers": 12, "num_heads": 32}
    | {"head_dim": 64, "n_groups": 1, "vocab_size": 50288, "tie_word_embeddings": True},
}


def built(folder: Path, quant: str | None) -> Decoder:
    """The folder's decoder with zeros for weights."""
    decoder = read_shapes(folder).decoder
    chosen = {} if quant is None else formats_of(recipe(quant), {"decoder": decoder})
    prepare({"decoder": decoder}, chosen)
    for module in decoder.modules():
        for key, meta in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            real = torch.zeros(meta.shape, dtype=meta.dtype)
            setattr(module, key, nn.Parameter(real, requires_grad=False) if key in module._parameters else real)
    return decoder.eval()


def allocated(decoder: Decoder, ids: torch.Tensor, state: Any) -> tuple[int, Any]:
    """The most that a forward holds above what was held before it, and its state."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        hidden, state = decoder(decoder.embed(ids), state)
        logits = decoder.logits(hidden[0, -1]).float()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        record.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    inside, now, most = dict[int, int](), 0, 0  # what was there before goes at any time, and does not count
    for event in sorted(events, key=lambda e: (e["ts"], e["args"].get("Ev Idx", 0))):
        address, size = event["args"]["Addr"], event["args"]["Bytes"]
        if size > 0:
            inside[address] = size
        else:
            size = -inside.pop(address, 0)
        now += size
        most = max(most, now)
    del logits
    return most, state


@torch.no_grad()
def compare(config: dict[str, Any], quant: str | None, context: int) -> tuple[MemoryPlan, dict[str, int]]:
    """The plan of a model with so much context, and the same parts as allocated."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "config.json").write_text(json.dumps(config))
        chosen = None if quant is None else recipe(quant)
        planned, decoder = plan(folder, chosen, context=context), built(folder, quant)
    state, ids = decoder.init_state(), torch.zeros(1, context, dtype=torch.long)
    *chunks, last = ids.split(chunk_size(decoder.config.d_model), 1)
    for chunk in chunks:
        _, state = decoder(decoder.embed(chunk), state)
    tape = state.nbytes("tape")
    most, state = allocated(decoder, last, state)
    real = {
        "weights": sum(t.nbytes for t in decoder.state_dict().values()),
        "state": state.nbytes("recurrent"),
        "tape": state.nbytes("tape"),
        "workspace": most - (state.nbytes("tape") - tape),
    }
    return planned, real


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--recipes", nargs="*", default=["fp32", "int8", "int4-small"])
    parser.add_argument("--context", type=int, default=2048)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chips.load()
    print(f"MB planned / allocated after {args.context} tokens")
    for name in args.models:
        for quant in args.recipes:
            planned, real = compare(MODELS[name], quant, args.context)
            parts = {"weights": sum(planned.weights.values()), "state": planned.state, "tape": planned.tape}
            parts |= {"workspace": planned.workspace}
            cells = [f"{part} {size / 1e6:.2f} / {real[part] / 1e6:.2f}" for part, size in parts.items()]
            total = sum(real.values())
            print(f"{name:8} {quant:10} {'   '.join(cells)}   total {planned.total / total - 1:+.2%}", flush=True)


if __name__ == "__main__":
    main()
