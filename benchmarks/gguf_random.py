"""A benchmark's config as a GGUF file with random weights, for llama.cpp to load and be timed with.

A matrix gets the GGUF type of as many bits as our recipe gives it: Q4_0 for int4, Q8_0 for int8, bf16, or fp32 where
ours stays dense; so both read nearly the same bytes of a token. Names and metadata are those that llama.cpp's loader
asks for. The file has no vocabulary: only ids are fed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from fluvial.adapters.recipes import recipe

Config = dict[str, Any]
Spec = tuple[str, tuple[int, ...], str]  # name, shape, the recipe's class of a matrix or "fp32"
TYPES = {"int4": gguf.GGMLQuantizationType.Q4_0, "int8": gguf.GGMLQuantizationType.Q8_0}
TYPES |= {"bf16": gguf.GGMLQuantizationType.BF16, "fp16": gguf.GGMLQuantizationType.F16}
FP32 = "fp32"


def _swiglu(name: str, d: int, d_ff: int) -> Iterator[Spec]:
    yield f"{name}.ffn_gate.weight", (d_ff, d), "up"
    yield f"{name}.ffn_up.weight", (d_ff, d), "up"
    yield f"{name}.ffn_down.weight", (d, d_ff), "down"


def _attention(name: str, c: Config, gated: bool) -> Iterator[Spec]:
    d, d_head = c["hidden_size"], c["head_dim"]
    d_q, d_kv = c["num_attention_heads"] * d_head, c["num_key_value_heads"] * d_head
    yield f"{name}.attn_q.weight", (d_q * (1 + gated), d), "in"
    for part in "kv":
        yield f"{name}.attn_{part}.weight", (d_kv, d), "key_value" if d_kv < d else "in"
    yield f"{name}.attn_output.weight", (d, d_q), "out"
    for part in "qk":
        yield f"{name}.attn_{part}_norm.weight", (d_head,), FP32


def _qwen3(name: str, c: Config, _: int) -> Iterator[Spec]:
    yield f"{name}.attn_norm.weight", (c["hidden_size"],), FP32
    yield from _attention(name, c, gated=False)
    yield f"{name}.ffn_norm.weight", (c["hidden_size"],), FP32
    yield from _swiglu(name, c["hidden_size"], c["intermediate_size"])


def _qwen35(name: str, c: Config, layer: int) -> Iterator[Spec]:
    d, heads = c["hidden_size"], c["linear_num_value_heads"]
    d_value = heads * c["linear_value_head_dim"]
    d_conv = d_value + 2 * c["linear_num_key_heads"] * c["linear_key_head_dim"]
    for norm in ("attn_norm", "post_attention_norm"):
        yield f"{name}.{norm}.weight", (d,), FP32
    if layer % 4 == 3:
        yield from _attention(name, c, gated=True)
    else:
        yield f"{name}.attn_qkv.weight", (d_conv, d), "in"
        yield f"{name}.attn_gate.weight", (d_value, d), "in"
        yield f"{name}.ssm_conv1d.weight", (d_conv, c["linear_conv_kernel_dim"]), FP32
        for vector in ("ssm_dt.bias", "ssm_a"):
            yield f"{name}.{vector}", (heads,), FP32
        for gate in ("ssm_alpha", "ssm_beta"):
            yield f"{name}.{gate}.weight", (heads, d), "gate"
        yield f"{name}.ssm_norm.weight", (c["linear_value_head_dim"],), FP32
        yield f"{name}.ssm_out.weight", (d, d_value), "out"
    yield from _swiglu(name, d, c["intermediate_size"])


def _rwkv7(name: str, c: Config, layer: int) -> Iterator[Spec]:
    d, d_ff = c["hidden_size"], c["intermediate_size"]
    vectors = ["attn_norm.bias", "attn_norm_2.weight", "attn_norm_2.bias", "time_mix_ln.weight", "time_mix_ln.bias"]
    vectors += [f"time_mix_{vector}.weight" for vector in ("w0", "a0", "v0", "k_k", "k_a", "r_k")]
    for vector in ("attn_norm.weight", *vectors):
        yield f"{name}.{vector}", (d,), FP32
    for gate, rank in RANKS.items():
        yield f"{name}.time_mix_{gate}1.weight", (rank, d), "gate"
        yield f"{name}.time_mix_{gate}2.weight", (d, rank), "gate"
    yield f"{name}.time_mix_lerp_fused.weight", (6, 1, 1, d), FP32
    yield f"{name}.channel_mix_lerp_k.weight", (1, 1, d), FP32
    for matrix in ("receptance", "key", "value"):
        yield f"{name}.time_mix_{matrix}.weight", (d, d), "in"
    yield f"{name}.time_mix_output.weight", (d, d), "out"
    yield f"{name}.channel_mix_key.weight", (d_ff, d), "up"
    yield f"{name}.channel_mix_value.weight", (d, d_ff), "down"


def _mamba2(name: str, c: Config, _: int) -> Iterator[Spec]:
    d, heads = c["hidden_size"], c["num_heads"]
    d_inner = heads * c["head_dim"]
    d_conv = d_inner + 2 * c["n_groups"] * STATE
    yield f"{name}.attn_norm.weight", (d,), FP32
    yield f"{name}.ssm_in.weight", (d_inner + d_conv + heads, d), "in"
    yield f"{name}.ssm_conv1d.weight", (d_conv, CONV), FP32
    yield f"{name}.ssm_conv1d.bias", (d_conv,), FP32
    yield f"{name}.ssm_dt.bias", (heads,), FP32
    for vector in ("ssm_a", "ssm_d"):
        yield f"{name}.{vector}", (heads, 1), FP32
    yield f"{name}.ssm_norm.weight", (c["n_groups"], d_inner // c["n_groups"]), FP32
    yield f"{name}.ssm_out.weight", (d, d_inner), "out"


RANKS = {"w": 64, "a": 64, "v": 64, "g": 160}  # of RWKV-7 at 1024 channels
STATE, CONV = 128, 4  # of Mamba-2
LAYERS: dict[str, tuple[str, Callable[[str, Config, int], Iterator[Spec]]]] = {
    "qwen3": ("qwen3", _qwen3),
    "qwen3_5_text": ("qwen35", _qwen35),
    "rwkv7": ("rwkv7", _rwkv7),
    "mamba2": ("mamba2", _mamba2),
}


def _specs(c: Config) -> Iterator[Spec]:
    d, vocab = c["hidden_size"], c["vocab_size"]
    norms = ["output_norm.weight"]
    if c["model_type"] == "rwkv7":
        norms += ["output_norm.bias", "token_embd_norm.weight", "token_embd_norm.bias"]
    yield "token_embd.weight", (vocab, d), "embedding"
    for norm in norms:
        yield norm, (d,), FP32
    if not c.get("tie_word_embeddings"):
        yield "output.weight", (vocab, d), "head"
    for layer in range(c["num_hidden_layers"]):
        yield from LAYERS[c["model_type"]][1](f"blk.{layer}", c, layer)


def _metadata(writer: gguf.GGUFWriter, c: Config) -> None:
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(c["vocab_size"])
    writer.add_context_length(1 << 18)
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c.get("intermediate_size", 0))
    writer.add_head_count(c.get("num_attention_heads", 0))
    writer.add_layer_norm_rms_eps(1e-6)
    if "num_key_value_heads" in c:
        writer.add_head_count_kv(c["num_key_value_heads"])
        writer.add_key_length(c["head_dim"])
        writer.add_value_length(c["head_dim"])
        writer.add_rope_freq_base(c.get("rope_parameters", c)["rope_theta"])
    if c["model_type"] == "qwen3_5_text":
        writer.add_rope_dimension_count(c["head_dim"] // 4)
        writer.add_rope_dimension_sections([11, 11, 10, 0])
        writer.add_full_attention_interval(4)
        _ssm(writer, c["linear_num_value_heads"], c["linear_value_head_dim"], c["linear_num_key_heads"])
        writer.add_ssm_state_size(c["linear_key_head_dim"])
    elif c["model_type"] == "mamba2":
        _ssm(writer, c["num_heads"], c["head_dim"], c["n_groups"])
        writer.add_ssm_state_size(STATE)
    elif c["model_type"] == "rwkv7":
        writer.add_layer_norm_eps(1e-5)
        writer.add_wkv_head_size(c["head_dim"])
        writer.add_decay_lora_rank(RANKS["w"])
        writer.add_iclr_lora_rank(RANKS["a"])
        writer.add_value_residual_mix_lora_rank(RANKS["v"])
        writer.add_gate_lora_rank(RANKS["g"])


def _ssm(writer: gguf.GGUFWriter, heads: int, d_head: int, groups: int) -> None:
    writer.add_ssm_conv_kernel(CONV)
    writer.add_ssm_inner_size(heads * d_head)
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_group_count(groups)


def write(path: Path, config: Config, quant: str) -> int:
    """Writes the file in the types of our recipe `quant`; gives the bytes of weights that a token reads."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, LAYERS[config["model_type"]][0])
    _metadata(writer, config)
    read = 0
    for name, shape, of_class in _specs(config):
        form = FP32 if of_class == FP32 else recipe(quant).formats[of_class].partition("-")[0]
        kind = TYPES.get(form)
        if kind is None:
            tensor = rng.uniform(-0.03, 0.03, shape).astype(np.float32)
            writer.add_tensor(name, tensor)
        else:
            tensor = _blocks(rng, shape, kind)
            writer.add_tensor(name, tensor, raw_dtype=kind)
        read += 0 if name == "token_embd.weight" and not config.get("tie_word_embeddings") else tensor.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read


def _blocks(rng: np.random.Generator, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Random codes behind a small scale, or random small numbers, as bytes [rows, bytes of a row]."""
    columns, size = gguf.GGML_QUANT_SIZES[kind]
    if columns == 1:
        small = rng.uniform(-0.03, 0.03, shape).astype(np.float32)
        return gguf.quants.quantize(small, kind)
    blocks = rng.integers(0, 256, (shape[0], shape[1] // columns, size), np.uint8)
    scales = rng.uniform(-8e-4, 8e-4, blocks.shape[:2]).astype(np.float16)
    blocks[..., :2] = scales[..., None].view(np.uint8)
    return blocks.reshape(shape[0], -1)
