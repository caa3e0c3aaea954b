"""The one door: LoRA reaches every projection of every architecture, and formats keep their promise."""

from __future__ import annotations

import copy

import pytest
import torch

from fluvial.adapters.errors import IntegrityError, UnsupportedError
from fluvial.adapters.formats import by_name
from fluvial.adapters.linear import Embedding, Linear
from fluvial.adapters.lora import LoraPair
from fluvial.engine.workspace import Live
from tests.models.zoo import NAMES, decoder, gap, inputs


def _pair(layer: Linear, seed: int, rank: int = 2) -> LoraPair:
    draw = torch.Generator().manual_seed(seed)
    A, B = torch.randn(rank, layer.d_in, generator=draw), torch.randn(layer.d_out, rank, generator=draw)
    return LoraPair(A.double() * 0.1, B.double() * 0.1, scale=0.7)


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_equals_merged_weights_in_every_projection(name):
    base = decoder(name)
    model, merged = copy.deepcopy(base), copy.deepcopy(base)
    doors = {n: m for n, m in model.named_modules() if isinstance(m, Linear) and not isinstance(m, Embedding)}
    assert len(doors) >= 4
    for i, (n, layer) in enumerate(doors.items()):
        pair = _pair(layer, i)
        layer.attach("p", pair)
        target = merged.get_submodule(n)
        target.parts["weight"].add_(pair.scale * pair.B @ pair.A)
    x = inputs(2, 20, 1)
    assert gap(model(x, route={"p": 1.0})[0], merged(x)[0]) <= 1e-10
    assert torch.equal(model(x)[0], base(x)[0])  # not routed: not there
    assert gap(model(x, route={"p": 1.0})[0], base(x)[0]) > 1e-3
    for n in doors:  # one at a time: no projection forgets the route
        only = copy.deepcopy(base)
        only.get_submodule(n).attach("p", _pair(doors[n], 5))
        if n != "head":
            assert not torch.equal(only(x, route={"p": 1.0})[0], base(x)[0]), n


def test_rows_with_different_strengths_equal_each_alone():
    model = copy.deepcopy(decoder("everything"))
    for i, layer in enumerate(m for m in model.modules() if isinstance(m, Linear)):
        layer.attach("a", _pair(layer, i))
        layer.attach("b", _pair(layer, 100 + i))
    x = inputs(3, 12, 1)
    strengths = {"a": torch.tensor([1.0, 0.0, 0.5]), "b": torch.tensor([0.0, 2.0, 0.5])}
    together, _ = model(x, route=strengths)
    for b in range(3):
        alone, _ = model(x[b : b + 1], route={name: float(s[b]) for name, s in strengths.items()})
        assert gap(together[b : b + 1], alone) <= 1e-10


def test_a_pair_that_does_not_fit_is_refused():
    layer = Linear(4, 6)
    with pytest.raises(IntegrityError, match="does not fit"):
        layer.attach("p", LoraPair(torch.zeros(2, 5), torch.zeros(6, 2)))
    with pytest.raises(IntegrityError, match="does not fit"):
        layer.attach("p", LoraPair(torch.zeros(2, 4), torch.zeros(6, 3)))


def test_an_embedding_looks_up_and_projects_with_one_table():
    table = Embedding(10, 4).double()
    ids = torch.tensor([[1, 3], [9, 0]])
    assert torch.equal(table.lookup(ids), table.matrix()[ids])
    x = torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(table(x), x @ table.matrix().T)


def test_unknown_formats_say_what_there_is():
    with pytest.raises(UnsupportedError, match="dense"):
        by_name("int3")


@pytest.mark.parametrize("format", ["dense", "int8-g32"])
def test_the_bias_of_many_rows_takes_no_memory_of_its_own(format):
    torch.manual_seed(0)
    layer = Linear(32, 512, bias=True).requires_grad_(False)
    layer.store(by_name(format))
    layer.bias.normal_()
    layer.attach("p", LoraPair(torch.randn(2, 32), torch.randn(512, 2)))
    x, bytes_out = torch.randn(600, 32), 600 * 512 * 4
    layer(x)
    with torch.no_grad(), Live([x, *layer.parameters(), *layer.buffers()]) as live:
        y = layer(x)
    assert live.most < 1.5 * bytes_out
    few = torch.cat([layer(part) for part in x.split(10)])
    torch.testing.assert_close(y, few, rtol=1e-5, atol=1e-5)
    update = 0.5 * x @ layer.plugins["p"].A.T @ layer.plugins["p"].B.T
    with torch.no_grad():
        torch.testing.assert_close(layer(x, {"p": 0.5}), y + update, rtol=1e-4, atol=1e-4)
