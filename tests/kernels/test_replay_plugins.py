"""Recorded forwards under plugins: the same bits as calling the kernels one by one; one recording for all routes that
are alike; nothing of a plugin is used, or held, after it went."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fluvial.adapters import native
from fluvial.adapters.linear import Embedding, Linear
from fluvial.adapters.lora import LoraPair, Replacement, Route
from fluvial.adapters.recording import TOKENS
from fluvial.models import replay
from fluvial.models.decoder import Decoder
from tests.kernels.test_replay import BLOCKS, D, inputs, recorded, same
from tests.kernels.test_replay import decoder as plain

pytestmark = pytest.mark.skipif(native.library() is None, reason="the kernels were not built")


def doors(model: Decoder) -> Iterator[Linear]:
    return (layer for layer in model.blocks.modules() if isinstance(layer, Linear) and not isinstance(layer, Embedding))


def pair(layer: Linear, seed: int, rank: int, dora: bool) -> LoraPair:
    draw = torch.Generator().manual_seed(seed)
    A, B = torch.randn(rank, layer.d_in, generator=draw) / 8, torch.randn(rank, layer.d_out, generator=draw) / 8
    gain, bias = (torch.randn(layer.d_out, generator=draw) / 8 for _ in range(2))
    return LoraPair(A, B.T, 0.7, gain, bias) if dora else LoraPair(A, B.T, 0.7)


def attach(model: Decoder, name: str, seed: int, *, rank: int = 4, dora: bool = False, step: int = 1) -> None:
    for i, layer in enumerate(doors(model)):
        if i % step == 0:
            layer.attach(name, pair(layer, 100 * seed + i, rank, dora))


def detach(model: Decoder, name: str) -> None:
    for layer in doors(model):
        layer.detach(name)


def with_plugins(name: str, quant: str = "") -> Decoder:
    """Plugins a and b are alike, c is DoRA and has another rank, d changes only every third matrix."""
    model = copy.deepcopy(plain(name, quant))
    attach(model, "a", 1)
    attach(model, "b", 2)
    attach(model, "c", 3, rank=19, dora=True)
    attach(model, "d", 4, step=3)
    return model


class Twice:
    """A session that goes on with recordings, and one without."""

    def __init__(self, model: Decoder, batch: int = 1) -> None:
        self.model = model
        self.states = [model(inputs(batch, TOKENS + 1, 1))[1] for _ in range(2)]

    def step(self, route: Route, seed: int = 0, tokens: int = 1) -> Tensor:
        """The hidden states of both, which are the same, of a forward that they keep."""
        x = inputs(self.states[0].batch, tokens, seed)
        hidden, self.states[0] = self.model(x, self.states[0], route=route)
        with replay.eager():
            wanted, self.states[1] = self.model(x, self.states[1], route=route)
        assert torch.equal(hidden, wanted) and same(*self.states)
        return hidden


ROUTES: list[Mapping[str, float | Tensor]] = [
    {"a": 1.0},
    {"c": 0.5},
    {"a": 0.3, "b": -0.7, "c": 0.2},
    {"state": 1.0, "d": 1.0, "a": 0.0},
    {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.0, 1.0]), "d": 0.5},  # a plugin for each row
]


@pytest.mark.parametrize(("name", "quant"), [*((name, "") for name in BLOCKS), ("hybrid", "int4-g32")])
@torch.inference_mode()
def test_plugins_give_the_same_bits(name: str, quant: str) -> None:
    model = with_plugins(name, quant)
    for route in ROUTES:
        for tokens in (1, 3):
            session = Twice(model, 2)
            for seed in range(4):
                hidden = session.step(route, seed, tokens)
        assert not torch.equal(hidden, model(inputs(2, 3, 3), model(inputs(2, TOKENS + 1, 1))[1])[0])
    assert recorded(model) and sum(key[0] == (2, 1, D) for key in model._replays._known) == len(ROUTES)


@torch.inference_mode()
def test_journals_under_plugins_commit_the_same() -> None:
    model, route = with_plugins("hybrid"), {"a": 0.5, "c": 1.0}
    fast, slow = (model(inputs(1, 5, 1), route=route)[1] for _ in range(2))
    for seed in range(5):
        x = inputs(1, 3, seed)
        hidden, journal = model(x, fast, route=route, journal=True)
        with replay.eager():
            wanted, other = model(x, slow, route=route, journal=True)
        assert torch.equal(hidden, wanted)
        fast, slow = journal.commit(2), other.commit(2)
        assert same(fast, slow)
    assert recorded(model)


@torch.inference_mode()
def test_sessions_with_other_plugins_take_turns_in_one_recording() -> None:
    model = with_plugins("hybrid")
    routes: list[Route] = [{"a": 1.0}, {"b": 1.0}, {"b": 0.25}, {"state": 1.0, "a": 2.0}]
    sessions = [Twice(model) for _ in routes]
    before = {key: t.data_ptr() for key, t in model.state_dict().items()}
    for seed in range(6):
        for session, route in zip(sessions, routes, strict=True):
            session.step(route, seed)
    (program,) = (one for one in model._replays._known.values() if one is not None)
    assert recorded(model)
    for route in ({"b": 1.0, "a": 0.5}, {"a": 1.0, "b": 1.0}):
        for seed in range(4):
            sessions[0].step(route, seed)
    assert recorded(model) and len(model._replays._known) == 2 and program in model._replays._known.values()
    assert before == {key: t.data_ptr() for key, t in model.state_dict().items()}


@torch.inference_mode()
def test_a_route_that_changes_no_matrix_is_as_none() -> None:
    model = with_plugins("mamba2")
    session = Twice(model)
    for route in ({}, {"state": 1.0}, {"unknown": 0.5}):
        session.step(route)
    assert recorded(model) and len(model._replays._known) == 1


@torch.inference_mode()
def test_a_plugin_that_goes_or_changes_is_never_used_again() -> None:
    model, route = with_plugins("hybrid"), {"a": 1.0, "b": 0.5}
    session = Twice(model)
    for seed in range(4):
        session.step(route, seed)

    def said() -> Tensor:
        one = Twice(model)
        return torch.cat([one.step(route, seed) for seed in range(2)])

    seen = [said()]
    pairs = [layer.plugins["a"] for layer in doors(model)]
    held = [weakref.ref(one.A) for one in pairs if isinstance(one, LoraPair)]
    assert len(held) == len(pairs) > 0
    del pairs
    detach(model, "a")
    assert not any(ref() is not None for ref in held)
    seen.append(said())
    for seed in (7, 8):  # other content under the same name: after the one before went, and in its place
        attach(model, "a", seed)
        seen.append(said())
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    attach(model, "a", 1)
    assert torch.equal(said(), seen[0]) and recorded(model)


@torch.inference_mode()
def test_exchanged_modules_take_their_plugins_with_them() -> None:
    model = with_plugins("mamba2")
    session = Twice(model)
    for seed in range(3):
        session.step({"a": 1.0}, seed)
    model.blocks[0] = copy.deepcopy(model.blocks[1])
    for seed in range(4):
        session.step({"a": 1.0}, seed)
    assert recorded(model)


@torch.inference_mode()
def test_tensors_that_matrices_share_are_told_from_those_that_they_do_not() -> None:
    """Plugin `one` has the same A everywhere, `two` has not; x and y are the same as two."""
    model = copy.deepcopy(plain("transformer"))
    A = torch.randn(4, D, generator=torch.Generator().manual_seed(1)) / 8
    for i, layer in enumerate(layer for layer in doors(model) if layer.d_in == D):
        layer.attach("one", replace(pair(layer, i, 4, False), A=A))
        for name in ("two", "x", "y"):
            layer.attach(name, layer.plugins.get("two") or pair(layer, 50 + i, 4, False))
    session = Twice(model)
    for seed in range(4):
        for name in ("one", "two"):
            session.step({name: 1.0}, seed)
    assert recorded(model) and len(model._replays._known) == 2
    for seed in range(4):
        session.step({"x": 1.0, "y": 0.5}, seed)
    assert "plugins share a tensor" in model._replays.refusals().values()


@torch.inference_mode()
def test_a_whole_matrix_in_place_of_the_base_goes_on_as_before() -> None:
    model = copy.deepcopy(plain("mamba2"))
    for i, layer in enumerate(doors(model)):
        layer.attach("p", Replacement(torch.randn(layer.d_out, layer.d_in, generator=torch.Generator().manual_seed(i))))
    session = Twice(model)
    for seed in range(4):
        session.step({"p": 0.5}, seed)
    assert any(model._replays.refusals().values())


@torch.inference_mode()
def test_recordings_and_operands_are_bounded_and_those_in_use_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluvial.models.replay.MOST", 4)
    monkeypatch.setattr("fluvial.adapters.operands.MOST", 4)
    model = copy.deepcopy(plain("mamba2"))
    for rank in range(1, 9):
        attach(model, str(rank), rank, rank=rank)
    session, programs = Twice(model), list[object]()
    for rank in range(2, 9):
        for seed in range(3):
            session.step({"1": 1.0}, seed)
            session.step({str(rank): 1.0}, seed)
        programs.append(model._replays._known[list(model._replays._known)[-2]])
    weights = model._replays._weights
    assert weights is not None and len(weights.routes._known) == 4
    assert recorded(model) and len(model._replays._known) == 4
    assert programs[0] is not None and all(one is programs[0] for one in programs)


@torch.inference_mode()
def test_what_is_expected_is_recorded_the_first_time_also_under_plugins() -> None:
    model = with_plugins("mamba2")
    model.expect(1, 1, journal=False)
    for route in ({"a": 1.0}, {"c": 1.0}):
        Twice(model).step(route)
    assert recorded(model) and len(model._replays.refusals()) == 1 and None not in model._replays._known.values()
