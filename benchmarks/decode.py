"""Decode and prefill of published sizes with random weights: whole model, head and greedy sampling.

python benchmarks/decode.py --models qwen3-0.6b --recipes int4 int8 --threads 2 --peers transformers llama

Weights are made in their packed form, so no model is ever in memory in bf16. Bytes of a token: every stored matrix once
(of an untied embedding only its row), the state read and written, the tape read. The bandwidth is that of a sum over
256 MB with as many threads, between the tokens, in huge pages as the weights are; in brackets in pages of 4 KB. CPU
time of all threads over the number of threads stands in for wall time with `--clock cpu`, on a machine that has other
work.

"outside" is what a token spends outside of native code: Python, dispatch and small torch ops. The parts are those of
the same token with its kernels called one by one. "late" compares a token at position 100,000 with one at 1,000, by
turns, for models whose state is constant: their states say that so many tokens came before.

`--peers llama` times llama.cpp where it is installed (`pip install llama-cpp-python gguf`), on a GGUF file of the same
shapes and nearly the same bytes, behind the same prefill. It rounds activations to 8 bits for int4 and int8; ours keep
what `--dtype` keeps, but for the recipes that end in -a8.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from peers import llama_times, transformers_decode
from torch import nn

from fluvial.adapters import chips, native, ops, pages
from fluvial.adapters.choice import largest
from fluvial.adapters.linear import Embedding, Linear
from fluvial.adapters.packed import formats_of, prepare
from fluvial.adapters.recipes import recipe
from fluvial.adapters.recording import Program
from fluvial.models import checkpoints
from fluvial.models.decoder import Decoder
from fluvial.models.replay import eager
from fluvial.models.state import State
from fluvial.models.tape import Tape

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
    },
    "qwen3.5-0.8b": {
        "model_type": "qwen3_5_text",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
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
        "vocab_size": 248320,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
    },
    "rwkv7-0.4b": {
        "model_type": "rwkv7",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "head_dim": 64,
        "intermediate_size": 4096,
        "vocab_size": 65536,
    },
    "mamba2-780m": {
        "model_type": "mamba2",
        "hidden_size": 1536,
        "num_hidden_layers": 48,
        "num_heads": 48,
        "head_dim": 64,
        "n_groups": 1,
        "vocab_size": 50288,
        "tie_word_embeddings": True,
    },
}
KINDS = {"linear": "matrices", "mix": "state", "attend": "attention"}  # by the end of an op's name


def built(config: dict[str, Any], name: str, dtype: torch.dtype) -> Decoder:
    """A decoder with random weights in the recipe's formats."""
    with torch.device("meta"):
        decoder = Decoder(checkpoints.family(config["model_type"]).decoder_config(config))
    chosen = formats_of(recipe(name), {"decoder": decoder})
    prepare({"decoder": decoder}, chosen)
    for module in decoder.modules():
        tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        for key, meta in tensors.items():
            packed = isinstance(module, Linear) and module.format.name != "dense" and key in module.parts
            real = torch.empty(meta.shape, dtype=meta.dtype if packed or not meta.is_floating_point() else dtype)
            if not real.is_floating_point():
                real.random_(0, 256 if real.dtype == torch.uint8 else 120)
            elif key in ("scale", "offset"):
                real.uniform_(-0.0008, 0.0008)
            else:
                real.uniform_(-0.03, 0.03)
            setattr(module, key, nn.Parameter(real, requires_grad=False) if key in module._parameters else real)
    pages.gather((*decoder.parameters(), *decoder.buffers()))
    pages.keep()  # both as the loader does
    return decoder.eval()


def bytes_read(decoder: Decoder) -> int:
    """What a token reads of the weights."""
    total = 0
    for module in decoder.modules():
        if isinstance(module, Embedding) and decoder.head is not None:
            continue
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        total += sum(t.nbytes for t in tensors)
    return total


@contextmanager
def timed(owner: type, name: str, add: Callable[[Any, float], None], clock: Callable[[], float]) -> Iterator[None]:
    """Inside, every call of that method is followed by `add(self, its seconds)`."""
    original = getattr(owner, name)

    def wrapper(self: Any, *args: Any, **options: Any) -> Any:
        start = clock()
        result = original(self, *args, **options)
        add(self, clock() - start)
        return result

    setattr(owner, name, wrapper)
    try:
        yield
    finally:
        setattr(owner, name, original)


def kind(op: ops.Op) -> str:
    return next((kind for end, kind in KINDS.items() if op.name.endswith(end)), "other ops")


def bandwidth(data: torch.Tensor, clock: Callable[[], float]) -> float:
    """Bytes a second that a sum reads."""
    start = clock()
    data.sum()
    return data.nbytes / (clock() - start)


@torch.inference_mode()
def measure(
    name: str, quant: str, dtype: torch.dtype, tokens: int, prefill: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Prints one row and gives the seconds of a token and of the prefill."""
    decoder = built(CONFIGS[name], quant, dtype)
    data = torch.ones(64 << 20)
    small = statistics.median(bandwidth(data, clock) for _ in range(5))
    pages.gather([data])
    reads = list[float]()

    def step(ids: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        hidden, state = decoder(decoder.embed(ids), state)
        return largest(decoder.logits(hidden[:, -1]), 1)[1], state

    ids = torch.randint(0, decoder.config.vocab, (1, prefill))
    took = []
    for _ in range(2):
        start = clock()
        token, state = step(ids, None)
        took.append(clock() - start)
    times, inside = list[float](), list[float]()

    def add(_: Any, seconds: float) -> None:
        inside[-1] += seconds

    for _ in range(2):  # the second is recorded
        token, state = step(token, state)
    with timed(Program, "call", add, clock), timed(native.Function, "__call__", add, clock):
        for i in range(tokens):
            inside.append(0.0)
            start = clock()
            token, state = step(token, state)
            times.append(clock() - start)
            if i % 4 == 1:
                reads.append(bandwidth(data, clock))
    read = statistics.median(reads)
    outside = statistics.median(1 - part / whole for part, whole in zip(inside, times, strict=True))
    parts: dict[str, float] = defaultdict(float)
    few = max(4, tokens // 4)

    def sort(op: ops.Op, seconds: float) -> None:
        parts[kind(op)] += seconds / few

    with timed(ops.Op, "__call__", sort, clock), eager():
        for _ in range(few):
            token, state = step(token, state)
    per_token = statistics.median(times)
    rows = [t for leaf in state.leaves.values() if isinstance(leaf, Tape) for t in leaf.rows]
    weights, recurrent, tape = bytes_read(decoder), 2 * state.nbytes("recurrent"), sum(t.nbytes for t in rows)
    total = weights + recurrent + tape
    print(
        f"{name:13}{quant:8}{1 / per_token:7.1f} tok/s {prefill / min(took):7.0f} prefill "
        f"{total / 1e6:6.0f} MB (state {recurrent / 1e6:.0f}, tape {tape / 1e6:.0f}) "
        f"{total / per_token / 1e9:5.1f} of {read / 1e9:5.1f} GB/s = {total / per_token / read:4.0%} "
        f"({small / 1e9:.1f} = {total / per_token / small:.0%})  outside {outside:.1%}  "
        + ("" if rows else f"late {late(step, token, state, tokens, clock):.2f}x  ")
        + ", ".join(f"{kind} {seconds * 1e3:.1f}" for kind, seconds in sorted(parts.items(), key=lambda one: -one[1]))
        + " ms",
        flush=True,
    )
    return per_token, min(took)


def late(step: Callable[..., Any], token: torch.Tensor, state: State, tokens: int, clock: Callable[[], float]) -> float:
    """Time of a token at position 100,000 over that at 1,000."""
    states = [replace(state, position=(position,)) for position in (1_000, 100_000)]
    times: list[list[float]] = [[], []]
    for _ in range(tokens):
        for i in range(2):
            start = clock()
            token, states[i] = step(token, states[i])
            times[i].append(clock() - start)
    early, after = (statistics.median(one) for one in times)
    return after / early


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--recipes", nargs="*", default=["int4", "int4-a8", "int8", "int8-a8", "bf16"])
    parser.add_argument("--dtype", default="float32", help="of the activations")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--prefill", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", nargs="*", default=["transformers"], choices=["transformers", "llama"])
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    if "llama" in args.peers and not (find_spec("llama_cpp") and find_spec("gguf")):
        parser.error("--peers llama needs llama.cpp: pip install llama-cpp-python gguf")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    chips.load()
    clock = time.perf_counter if args.clock == "wall" else (lambda: time.process_time() / args.threads)
    print(f"{native.status().detail}, {args.threads} threads, {args.clock} time, greedy, {args.dtype} activations")
    for name in args.models:
        took = {q: measure(name, q, getattr(torch, args.dtype), args.tokens, args.prefill, clock) for q in args.recipes}
        if "transformers" in args.peers and (peer := transformers_decode(CONFIGS[name], 16, 5, clock)) is not None:
            ratios = ", ".join(f"{quant} {peer / seconds:.1f}x" for quant, (seconds, _) in took.items())
            print(f"{name:13}Transformers eager bf16 {1 / peer:.1f} tok/s; faster than it: {ratios}", flush=True)
        for quant, (seconds, whole) in took.items() if "llama" in args.peers else ():
            token, prefill, read = llama_times(CONFIGS[name], quant, args.prefill, args.tokens, args.threads, clock)
            print(
                f"{name:13}{quant:8}{1 / token:7.1f} tok/s {args.prefill / prefill:7.0f} prefill {read / 1e6:6.0f} MB "
                f"of weights by llama.cpp; we are {token / seconds:.2f}x and {prefill / whole:.2f}x as fast",
                flush=True,
            )


if __name__ == "__main__":
    main()
