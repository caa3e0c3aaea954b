"""Other engines on a benchmark's config, with random weights, in the same process and threads: Transformers' eager
bf16, and llama.cpp (`pip install llama-cpp-python gguf`, built for this CPU) at the bytes of our recipe."""

from __future__ import annotations

import ctypes
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


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


class Llama:
    """llama.cpp with random weights in the GGUF types that are nearest to our recipe `quant`. `read`: bytes of weights
    of a token. Errors: ImportError where llama-cpp-python or gguf is not installed; ValueError for a config that it
    does not load."""

    def __init__(self, config: dict[str, Any], quant: str, threads: int, context: int) -> None:
        import gguf_random
        import llama_cpp

        self.library, self.vocab = llama_cpp, config["vocab_size"]
        llama_cpp.llama_log_set(SILENT, None)
        options = llama_cpp.llama_model_default_params()
        options.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE  # into memory: no page faults of a mapped file
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "random.gguf"
            self.read = gguf_random.write(path, config, quant)
            self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        about = llama_cpp.llama_context_default_params()
        about.n_ctx = about.n_batch = context
        about.n_threads = about.n_threads_batch = threads
        self.context = self.model and llama_cpp.llama_init_from_model(self.model, about)
        if not self.context:
            raise ValueError(f"llama.cpp does not load a random {config['model_type']}.")

    def forget(self) -> None:
        """Back to position 0."""
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)

    def step(self, ids: Sequence[int]) -> int:
        """Feeds `ids` and gives the greedy next one."""
        fed = (ctypes.c_int32 * len(ids))(*ids)  # the batch only points to it
        if code := self.library.llama_decode(self.context, self.library.llama_batch_get_one(fed, len(ids))):
            raise RuntimeError(f"llama_decode gave {code}.")
        logits = self.library.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())

    def close(self) -> None:
        self.library.llama_free(self.context)
        self.library.llama_model_free(self.model)


def llama_times(
    config: dict[str, Any], quant: str, prefill: int, tokens: int, threads: int, clock: Callable[[], float]
) -> tuple[float, float, int]:
    """Seconds of a greedy token behind `prefill` others (the median), of the prefill (the better of two) and the bytes
    of weights of a token. Errors: those of `Llama`."""
    llama, took, times = Llama(config, quant, threads, prefill + tokens + 8), list[float](), list[float]()
    for _ in range(2):
        llama.forget()
        start = clock()
        token = llama.step([1] * prefill)
        took.append(clock() - start)
    for _ in range(2 + tokens):
        start = clock()
        token = llama.step([token])
        times.append(clock() - start)
    llama.close()
    return statistics.median(times[2:]), min(took), llama.read
