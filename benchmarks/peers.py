"""Transformers' eager bf16 decode of a benchmark's config, with random weights, in the same process and threads."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch


def transformers_decode(config: dict[str, Any], prefill: int, tokens: int, clock: Callable[[], float]) -> float | None:
    """Median seconds of a greedy token behind `prefill` others; None where Transformers is not here or has no such
    model. Values of the weights do not matter to the time: they are zeros."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, logging
    except ImportError:
        return None
    logging.set_verbosity_error()  # its advice to install CUDA's kernels
    options = {key: value for key, value in config.items() if key != "model_type"}
    try:
        about = AutoConfig.for_model(config["model_type"], **options)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(about, dtype=torch.bfloat16)
    except ValueError:  # a model type that it does not know
        return None
    model = model.to_empty(device="cpu").eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.zero_()
    ids, past, times = torch.ones(1, prefill, dtype=torch.long), None, list[float]()
    name = "cache_params" if config["model_type"].startswith("mamba") else "past_key_values"
    for _ in range(1 + tokens):
        start = clock()
        out = model(input_ids=ids, use_cache=True, **({} if past is None else {name: past}))
        ids, past = out.logits[:, -1:].argmax(-1), out[name]
        times.append(clock() - start)
    return statistics.median(times[1:])
