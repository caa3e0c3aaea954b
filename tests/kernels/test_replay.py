"""Recorded forwards: the same bits as calling the kernels one by one, on every mixer that has kernels; states stay
values; a recording ends with the weights that it was made with."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fluvial.adapters import native
from fluvial.adapters.formats import by_name
from fluvial.adapters.recording import NotRecordable, Program, Recording, extent
from fluvial.models import replay
from fluvial.models.decoder import BlockConfig, Decoder, DecoderConfig
from fluvial.models.packed_leaves import PackedLeaves
from fluvial.models.state import State
from fluvial.models.tape import Tape
from tests.models.zoo import leaf_tensors

pytestmark = pytest.mark.skipif(native.library() is None, reason="the kernels were not built")

D = 64
FF = BlockConfig("swiglu", {"d_ff": 96, "gate_scale": 1.3}, scale=0.7)
DELTA = BlockConfig("gated_delta", {"heads": 4, "k_heads": 2, "d_k": 16, "d_v": 16})
FULL = {"heads": 4, "kv_heads": 2, "d_head": 32, "gate": True, "qk_norm": "rms1", "rotary": 0.5}
ATTENTION = BlockConfig("attention", FULL)
MAMBA2 = BlockConfig("mamba2", {"heads": 4, "d_head": 16, "d_state": 16})


def _time(first: bool) -> list[BlockConfig]:
    time = BlockConfig("rwkv7_time", {"d_head": 32, "ranks": (32, 32, 32, 32), "first": first})
    return [time, BlockConfig("rwkv7_channel", {"d_ff": 96})]


BLOCKS = {
    "transformer": [ATTENTION, FF, BlockConfig("attention", {"heads": 2, "bias": True}), FF],
    "rwkv7": [*_time(True), *_time(False)],
    "mamba2": [MAMBA2, MAMBA2],
    "mamba": [BlockConfig("mamba", {"d_inner": 96, "d_state": 8, "rank": 32})] * 2,
    "hybrid": [DELTA, FF, MAMBA2, ATTENTION, BlockConfig("relu2", {"d_ff": 96})],
}
each_model = pytest.mark.parametrize("name", BLOCKS)


@cache
def decoder(name: str, quant: str = "") -> Decoder:
    torch.manual_seed(3)
    layer = name == "rwkv7"
    config = DecoderConfig(50, D, tuple(BLOCKS[name]), "layer" if layer else "rms", embed_norm=layer)
    model = Decoder(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter += torch.randn_like(parameter) * 0.05
    for layer in model.modules() if quant else ():
        if hasattr(layer, "store"):
            layer.store(by_name(quant))
    return model


def inputs(batch: int, tokens: int, seed: int) -> Tensor:
    return torch.randn(batch, tokens, D, generator=torch.Generator().manual_seed(seed))


def same(a: State, b: State) -> bool:
    left, right = leaf_tensors(a), leaf_tensors(b)
    return (
        a.position == b.position and left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
    )


def recorded(model: Decoder) -> bool:
    found = model._replays.refusals()
    assert not any(found.values()), found
    return bool(found)


@each_model
@pytest.mark.parametrize("quant", ["", "int4-g32", "int8-g32", "bf16"])
@torch.inference_mode()
def test_a_recording_gives_the_same_bits(name: str, quant: str) -> None:
    model = decoder(name, quant)
    for batch, tokens, journal in [(1, 1, False), (1, 1, True), (2, 1, False), (1, 3, False), (2, 3, True)]:
        _, fast = model(inputs(batch, 7, 1))
        slow = fast.fork()
        for i in range(5):
            x = inputs(batch, tokens, i)
            hidden, fast = model(x, fast, journal=journal)
            with replay.eager():
                wanted, slow = model(x, slow, journal=journal)
            assert torch.equal(hidden, wanted)
            if journal:
                fast, slow = (one.commit(tokens - i % 2) for one in (fast, slow))
            assert same(fast, slow)
    assert recorded(model)


@each_model
@torch.no_grad()
def test_states_stay_values(name: str, tmp_path: Path) -> None:
    """Forks interleave, old states go on from where they were, and a saved one continues."""
    model = decoder(name)
    _, root = model(inputs(1, 5, 1))
    for seed in range(3):
        root = model(inputs(1, 1, seed), root)[1]
    forks, ways = [root, root.fork(), root.fork()], [root] * 3
    for step in range(8):
        for i in range(3):
            x = inputs(1, 1 + step % 2, 10 * step + i)
            forks[i] = model(x, forks[i])[1]
            with replay.eager():
                ways[i] = model(x, ways[i])[1]
        assert all(same(fork, way) for fork, way in zip(forks, ways, strict=True))
    assert recorded(model)
    root.save(tmp_path / "a.state")
    again = State.restore(tmp_path / "a.state")
    assert same(again, root) and again.nbytes("recurrent") == root.nbytes("recurrent")
    assert torch.equal(model(inputs(1, 1, 9), again)[0], model(inputs(1, 1, 9), root)[0])


@torch.no_grad()
def test_memory_of_a_dropped_state_is_used_again_and_of_a_held_one_never() -> None:
    model, state = copy.deepcopy(decoder("mamba2")), None
    for seed in range(4):
        state = model(inputs(1, 1, seed), state)[1]
    assert isinstance(state, State) and isinstance(state.leaves, PackedLeaves)
    places = set[int]()
    for seed in range(20):
        state = model(inputs(1, 1, seed), state)[1]
        places.add(state.leaves.memory.data_ptr())  # type: ignore[attr-defined]
    gc.collect()
    assert len(places) == 2
    leaf = state.leaves["0.h"]
    assert isinstance(leaf, Tensor)
    value, held = leaf.clone(), []
    for seed in range(6):
        state = model(inputs(1, 1, seed), state)[1]
        held.append((state, {name: t.clone() for name, t in leaf_tensors(state.fork()).items()}))
    assert torch.equal(leaf, value)
    assert all(torch.equal(t, before[name]) for one, before in held for name, t in leaf_tensors(one).items())


def _exchange(how: str, model: Decoder) -> None:
    block = model.get_submodule("blocks.0.mixer")
    layer = block.in_proj  # type: ignore[union-attr]
    other = torch.randn_like(layer.matrix()) * 0.1  # type: ignore[operator]
    if how == "store":
        layer.store(by_name("int4-g32"))  # type: ignore[operator]
    elif how == "assign":
        layer.weight = nn.Parameter(other, requires_grad=False)
    elif how == "load":
        model.load_state_dict({"blocks.0.mixer.in_proj.weight": other}, strict=False, assign=True)
    elif how == "to":  # new data in the same parameters
        block.double().float()
        block.norm.gain.mul_(1.5)  # type: ignore[union-attr, operator]
    elif how == "module":
        model.blocks[0] = copy.deepcopy(model.blocks[1])
    else:
        layer.weight.copy_(other)  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("how", ["store", "assign", "load", "to", "module", "in place"])
@torch.no_grad()
def test_exchanged_weights_are_seen_at_once(how: str) -> None:
    model = copy.deepcopy(decoder("mamba2"))
    x, state = inputs(1, 1, 1), model(inputs(1, 1, 2))[1]
    for _ in range(3):
        before = model(x, state)[0]
    assert recorded(model)
    _exchange(how, model)
    with replay.eager():
        wanted = model(x, state)[0]
    assert not torch.equal(wanted, before)
    for _ in range(3):
        assert torch.equal(model(x, state)[0], wanted)


@torch.no_grad()
def test_a_hook_sees_every_forward_and_a_copy_has_its_own_recordings() -> None:
    model = copy.deepcopy(decoder("mamba2"))
    x, state = inputs(1, 1, 1), model(inputs(1, 1, 2))[1]
    first = model(x, state)[0]
    assert all(torch.equal(model(x, state)[0], first) for _ in range(2))
    other = copy.deepcopy(model)
    assert not other._replays.refusals()
    for parameter in other.parameters():
        parameter.mul_(1.1)
    for _ in range(3):
        assert not torch.equal(other(x, state)[0], first)
    seen = []
    handle = model.blocks[1].register_forward_hook(lambda *_: seen.append(1))
    for _ in range(3):
        model(x, state)
    assert len(seen) == 3 and set(model._replays.refusals().values()) == {"a hook looks into the forward"}
    handle.remove()


@torch.no_grad()
def test_what_has_no_kernel_goes_on_as_before() -> None:
    blocks = (BlockConfig("attention", {"heads": 2, "window": 5}), FF)
    model, state = Decoder(DecoderConfig(50, D, blocks)), None
    x = inputs(1, 12, 4)
    whole = model(x)[0]
    for t in range(12):
        hidden, state = model(x[:, t : t + 1], state)
        torch.testing.assert_close(hidden[0, 0], whole[0, t])
    assert "positions" in model._replays.refusals()[1, 1, D]


STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "add scaled": lambda a, b: torch.add(a, b, alpha=0.5),  # a power of two: the same with and without fma
    "mul": lambda a, b: a * b,
    "mul by a number": lambda a, b: a * 1.7,
    "relu": lambda a, b: a.relu(),
    "square": lambda a, b: a.square(),
    "clone": lambda a, b: a.clone(),
    "turn": lambda a, b: a.mT.clone(memory_format=torch.contiguous_format),
    "cat": lambda a, b: torch.cat([a, b.expand(a.shape)], 1),
}
SHAPES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "plain": lambda: (inputs(2, 3, 1), inputs(2, 3, 2)),
    "row": lambda: (inputs(2, 3, 1), inputs(1, 1, 2)[0, 0]),
    "strided": lambda: (inputs(2, 6, 1)[:, ::2, 1:33], inputs(2, 3, 2)[..., :32]),
    "turned": lambda: (inputs(2, 5, 1).mT, inputs(2, 64, 2)[..., :5]),
    "special": lambda: (torch.tensor([[[float("nan"), float("inf"), -0.0, -1.0]]]), torch.tensor([0.0, -1, 2, 1e38])),
}


@pytest.mark.parametrize("way", SHAPES)
@pytest.mark.parametrize("step", STEPS)
@torch.inference_mode()
def test_steps_between_kernels_round_as_torch_does(step: str, way: str) -> None:
    a, b = SHAPES[way]()
    recording = Recording()
    with recording.listening():
        wanted = STEPS[step](a, b)
    program = Program(recording, [[extent(a)], [extent(b)]], [wanted], [])
    got = torch.empty_like(wanted)
    other_a, other_b = (torch.empty_strided(t.shape, t.stride()).copy_(t) for t in (a, b))
    program([other_a.data_ptr(), other_b.data_ptr()], [got.data_ptr()])
    assert torch.equal(got.nan_to_num(7), wanted.nan_to_num(7))


@torch.no_grad()
def test_anything_else_is_refused() -> None:
    x = inputs(1, 1, 1)
    for what in (torch.sin, Tensor.double, lambda t: t.add_(1), lambda t: t.sum().item(), lambda t: t + 1):
        with pytest.raises(NotRecordable), Recording().listening():
            what(x)
    recording = Recording()
    with recording.listening():
        y = x + x
    with pytest.raises(NotRecordable, match="unknown owner"):
        Program(recording, [], [y], [])


@torch.no_grad()
def test_a_fork_that_shares_rows_goes_on_without_its_recording() -> None:
    model = decoder("transformer")
    state = model(inputs(1, 64, 1))[1]
    for seed in range(4):
        state = model(inputs(1, 1, seed), state)[1]
    fork, x = state.fork(), inputs(1, 1, 6)
    first = model(x, state)
    second = model(x, fork)
    tape = second[1].leaves["0.kv"]
    assert isinstance(tape, Tape) and not tape.whole
    torch.testing.assert_close(second[0], first[0])
    assert recorded(model)


@pytest.mark.parametrize("name", ["transformer", "hybrid"])
def test_threads_do_not_disturb_each_other(name: str) -> None:
    """Each goes on with a state of its own, on one decoder."""
    model, steps = decoder(name), 60

    @torch.no_grad()
    def talk(seed: int) -> Tensor:
        state, said = None, []
        for x in torch.randn(steps, 1, 2, D, generator=torch.Generator().manual_seed(seed)):
            hidden, state = model(x, state)
            said.append(hidden)
        return torch.cat(said)

    alone = [talk(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(talk, range(3)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
