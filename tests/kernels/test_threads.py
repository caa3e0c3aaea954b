"""A recorded forward on several threads: the same bits as on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fluvial.adapters import native
from fluvial.adapters.formats import by_name
from fluvial.adapters.linear import Linear
from fluvial.models.decoder import BlockConfig, Decoder, DecoderConfig

pytestmark = pytest.mark.skipif(native.library() is None, reason="the kernels were not built")

D, TOKENS = 512, 24
BLOCKS = [
    BlockConfig("gated_delta", {"heads": 8, "d_k": 64, "d_v": 64}),
    BlockConfig("swiglu", {"d_ff": 1024}),
    BlockConfig("attention", {"heads": 8, "kv_heads": 2}),
    BlockConfig("relu2", {"d_ff": 1024}),
    BlockConfig("mamba2", {"heads": 16, "d_head": 64, "d_state": 64}),
]


@pytest.fixture(autouse=True)
def one_thread_again() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def made(quant: str) -> Decoder:
    torch.manual_seed(1)
    model = Decoder(DecoderConfig(50, D, tuple(BLOCKS))).requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, Linear) and quant:
            layer.store(by_name(quant))
    return model


@torch.inference_mode()
def said(model: Decoder, seed: int) -> torch.Tensor:
    draw, state, out = torch.Generator().manual_seed(seed), None, []
    for _ in range(TOKENS):
        hidden, state = model(torch.randn(1, 1, D, generator=draw), state)
        out.append(hidden)
    return torch.cat(out)


@pytest.mark.parametrize("quant", ["", "bf16", "int8-g32", "int4-g32"])
def test_the_same_bits_on_any_number_of_threads(quant: str) -> None:
    model = made(quant)
    alone = said(model, 1)
    assert not any(model._replays.refusals().values())
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert torch.equal(said(made(quant), 1), alone)
        assert torch.equal(said(model, 1), alone)  # recorded with one


def test_several_callers_at_once() -> None:
    model = made("int4-g32")
    alone = [said(model, seed) for seed in range(4)]
    torch.set_num_threads(2)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert all(map(torch.equal, pool.map(lambda seed: said(model, seed), range(4)), alone))
