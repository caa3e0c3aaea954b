"""The memory plan's parts against what is allocated, by the same comparison as the benchmark prints."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.plan import MODELS, compare
from fluvial.adapters import native
from fluvial.engine.workspace import peak

SMALL: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384, "vocab_size": 2048}
WIDTHS: dict[str, dict[str, Any]] = {
    "qwen3.5": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 32},
    "qwen3": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64},
    "rwkv7": {},
    "mamba2": {"num_heads": 4},
}


@pytest.mark.skipif(native.library() is None, reason="the plan counts on compiled kernels")
@pytest.mark.parametrize("quant", ["fp32", "int4-small"])
@pytest.mark.parametrize("name", MODELS)
def test_as_allocated(name: str, quant: str) -> None:
    planned, real = compare(MODELS[name] | SMALL | WIDTHS[name], quant, 1024)
    parts = {"weights": sum(planned.weights.values()), "state": planned.state, "tape": planned.tape}
    assert parts == {part: real[part] for part in parts}
    assert 0.95 * real["workspace"] <= planned.workspace <= 1.05 * real["workspace"]


def test_the_peak_counts_what_lives_at_one_time() -> None:
    held = torch.empty(1000, device="meta")

    def run() -> torch.Tensor:
        first = held + 1  # 4,000 bytes
        second = first.view(10, 100).mT * 2  # 4,000 more, and `first` goes
        del first
        return (second + 1).sum(0)  # 4,000 beside `second`, then 40

    assert peak(run, [held]) == 8040
