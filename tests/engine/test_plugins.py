"""Plugins in sessions: named, blended, switched, updated, saved, and never seen by a session that does not use them."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fluvial.adapters.errors import IntegrityError, ModelNotFoundError, UnsupportedError, UsageError
from fluvial.adapters.linear import Linear
from fluvial.engine import state_plugin
from fluvial.engine.engine import Engine
from fluvial.engine.events import Token
from fluvial.engine.media import Image
from fluvial.engine.model import Model, load_model
from fluvial.engine.session import Session
from tests.adapters.peft_files import pair, write
from tests.engine.tiny import VARIANTS, picture, write_model
from tests.models.zoo import gap, row_of

each_variant = pytest.mark.parametrize("variant", VARIANTS)
RECURRENT = [variant for variant in VARIANTS if variant != "transformer"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """One of each variant, in fp64, for this file alone: plugins stay on a model."""
    return {
        variant: load_model(write_model(tmp_path_factory.mktemp(variant), variant), dtype="fp64")
        for variant in VARIANTS
    }


def engine_on(model: Model) -> Engine:
    """Without plugins of another test."""
    gc.collect()
    for info in model.plugins.list():
        model.plugins.unload(info.name)
    assert not any(door.plugins for door in model.decoder.modules() if isinstance(door, Linear))
    return Engine(model)


def lora(folder: Path, model: Model, seed: int, *, size: float = 1.0, vision: bool = True, **options: object) -> Path:
    """Random LoRA on every projection."""
    tensors: dict[str, Tensor] = {}
    for prefix, module in (("model", model.decoder), ("vision", model.tower if vision else None)):
        for name, door in module.named_modules() if module is not None else ():
            if type(door) is Linear:
                tensors |= pair(f"{prefix}.{name}", door.d_out, door.d_in, seed=1000 * seed + len(tensors))
    return write(folder, {name: tensor * size for name, tensor in tensors.items()}, **options)


def start(path: Path, model: Model, seed: int) -> Path:
    """A random state plugin."""
    draw = torch.Generator().manual_seed(seed)
    empty = state_plugin.recurrent(model.decoder)
    leaves = {n: torch.randn(leaf.shape, generator=draw, dtype=torch.float64) * 0.5 for n, leaf in empty.items()}
    state_plugin.write(path, leaves, base="pebble")
    return path


def ids(session: Session, question: str = "What is there?", count: int = 4, **options: object) -> list[int]:
    return [event.id for event in session.ask(question, max_tokens=count, **options) if isinstance(event, Token)]


def state_of(session: Session) -> Tensor:
    """Some of what it remembers."""
    return session._now.feed.logits


@each_variant
def test_sessions_with_different_plugins_interleave_and_equal_their_separate_runs(models, variant, tmp_path):
    engine = engine_on(models[variant])
    engine.plugins.load(lora(tmp_path / "a", engine.model, 1))
    engine.plugins.load(lora(tmp_path / "b", engine.model, 2))
    choices = [None, "a", "b", {"a": 0.7, "b": 0.3}]
    before = {name: tensor.clone() for name, tensor in engine.model.decoder.state_dict().items()}
    seen = Image(picture(1)) if variant == "delta" else "Gate 3 is closed."
    alone = []
    for choice in choices:
        session = engine.session(plugin=choice)
        session.push(seen)
        alone.append((ids(session), state_of(session)))
    sessions = [engine.session(plugin=choice) for choice in choices]
    for session in sessions:
        session.push(seen)
    streams = [session.ask("What is there?", max_tokens=4) for session in sessions]
    said: list[list[int]] = [[] for _ in streams]
    for _ in range(6):  # one token each, in turn
        for stream, words in zip(streams, said, strict=True):
            event = next(stream, None)
            if isinstance(event, Token):
                words.append(event.id)
    for stream in streams:
        list(stream)
    assert said == [words for words, _ in alone]
    for session, (_, logits) in zip(sessions, alone, strict=True):
        assert torch.equal(state_of(session), logits)
    for i, (_, logits) in enumerate(alone):  # and they are four different models
        assert all(gap(logits, other) > 1e-3 for _, other in alone[:i])
    assert all(torch.equal(before[name], t) for name, t in engine.model.decoder.state_dict().items())


@each_variant
def test_rows_with_different_plugins_equal_each_alone(models, variant, tmp_path):
    engine = engine_on(models[variant])
    digests = [engine.plugins.load(lora(tmp_path / name, engine.model, i)).digest for i, name in enumerate("ab")]
    decoder, table = engine.model.decoder, torch.tensor([[5, 9, 30, 7]] * 4)
    strengths = torch.tensor([[1.0, 0.0, 0.0, 0.7], [0.0, 1.0, 0.0, 0.3]])
    if variant != "transformer":
        digests.append(engine.plugins.load(start(tmp_path / "s.safetensors", engine.model, 3)).digest)
        strengths = torch.cat([strengths, torch.tensor([[0.0, 1.0, 1.0, 0.5]])])
    route = dict(zip(digests, strengths, strict=True))
    with torch.no_grad():
        together, state = decoder(decoder.embed(table, route), route=route)
        for row in range(4):
            own = {digest: float(strength[row]) for digest, strength in route.items()}
            hidden, after = decoder(decoder.embed(table[:1], own), route=own)
            assert gap(together[row : row + 1], hidden) <= 1e-10
            for name, leaf in row_of(state, row).leaves.items():
                if isinstance(leaf, Tensor):
                    assert gap(leaf, after.leaves[name]) <= 1e-10


def test_a_blend_of_one_is_the_plugin_and_strengths_are_linear(models, tmp_path):
    engine = engine_on(models["delta"])
    engine.plugins.load(lora(tmp_path / "a", engine.model, 1))
    scaled = lora(tmp_path / "half", engine.model, 1, lora_alpha=3)
    engine.plugins.load(scaled)
    model, table = engine.model, torch.tensor([[5, 9, 30]])
    outputs = [model(table, route=engine.plugins.route(choice))[0] for choice in ("half", {"a": 0.5}, "a", {"a": 1})]
    assert gap(outputs[0], outputs[1]) <= 1e-10 and torch.equal(outputs[2], outputs[3])
    assert torch.equal(model(table, route=engine.plugins.route({"a": 0.0}))[0], model(table)[0])


def test_the_same_content_is_held_once(models, tmp_path):
    engine = engine_on(models["delta"])
    one = engine.plugins.load(lora(tmp_path / "a", engine.model, 1))
    two = engine.plugins.load(lora(tmp_path / "b", engine.model, 1), "again")
    assert one.digest == two.digest and [info.name for info in engine.plugins.list()] == ["a", "again"]
    door = engine.model.decoder.blocks[0].mixer.out_proj
    assert len(door.plugins) == 1
    both, route = engine.plugins.route({"a": 0.25, "again": 0.5}), engine.plugins.route({"a": 0.75})
    assert dict(both) == dict(route)
    engine.plugins.unload("a")
    assert len(door.plugins) == 1
    del both, route
    engine.plugins.unload("again")
    assert not door.plugins


def test_an_update_reaches_new_sessions_and_running_ones_keep_theirs(models, tmp_path):
    engine = engine_on(models["delta"])
    door = engine.model.decoder.blocks[0].mixer.out_proj
    engine.plugins.load(lora(tmp_path / "one" / "p", engine.model, 1))
    running, other = engine.session(plugin="p"), engine.session(plugin="p")
    first = ids(other)
    fork = other.fork()
    new = engine.plugins.load(lora(tmp_path / "two" / "p", engine.model, 2))
    assert len(door.plugins) == 2 and engine.plugins.list() == [new]
    assert ids(running) == first  # under the old content to the end
    fresh = engine.session(plugin="p")
    ids(fresh)
    assert gap(state_of(fresh), state_of(running)) > 1e-3
    del running, other
    assert len(door.plugins) == 2  # the fork still needs it
    ids(fork, "And now?")
    del fork
    gc.collect()
    assert list(door.plugins) == [new.digest]


def test_unloading_waits_for_the_sessions_that_use_it(models, tmp_path):
    engine = engine_on(models["delta"])
    engine.plugins.load(lora(tmp_path / "a", engine.model, 1))
    door = engine.model.decoder.blocks[0].mixer.out_proj
    with engine.session(plugin="a") as session:
        snapshot = session.snapshot()
        engine.plugins.unload("a")
        assert "a" not in engine.plugins and door.plugins and session.plugin == {"a": 1.0}
        with pytest.raises(ModelNotFoundError, match="no plugin 'a'"):
            engine.session(plugin="a")
        ids(session)
    assert door.plugins  # the snapshot may be restored yet
    del snapshot
    gc.collect()
    assert not door.plugins


@each_variant
def test_one_question_under_another_plugin(models, variant, tmp_path):
    engine = engine_on(models[variant])
    engine.plugins.load(lora(tmp_path / "a", engine.model, 1))
    engine.plugins.load(lora(tmp_path / "b", engine.model, 2))
    session, plain = engine.session(plugin="a"), engine.session(plugin="a")
    for each in (session, plain):
        each.push("Gate 3 is closed today.")
    past = session._now.feed
    under_b = ids(session, plugin="b", commit=False)
    assert session._now.feed is past  # the past as it was read, and the session where it was
    by_hand = plain.fork()
    by_hand.use("b")
    assert under_b == ids(by_hand) and by_hand.plugin == {"b": 1.0}
    ids(session, plugin="b")
    assert gap(state_of(session), state_of(by_hand)) == 0 and session.plugin == {"a": 1.0}
    by_hand.use({"a": 1.0})
    assert ids(session, "And now?") == ids(by_hand, "And now?")
    base = plain.fork()
    base.use(None)
    assert base.plugin == {} and ids(plain, plugin={}, commit=False) == ids(base)


def test_a_cancelled_or_failed_question_leaves_the_session_its_plugin(models, tmp_path):
    engine = engine_on(models["delta"])
    engine.plugins.load(lora(tmp_path / "a", engine.model, 1))
    session = engine.session()
    stream = session.ask("What is there?", plugin="a", max_tokens=6)
    next(stream)
    stream.close()
    assert session.plugin == {}
    now = session.snapshot()
    with pytest.raises(ModelNotFoundError, match="Loaded: a"):
        session.ask("Hm?", plugin="c")
    with pytest.raises(UsageError, match="nothing to answer"):
        next(session.ask("", plugin="a"))
    with pytest.raises(UsageError, match="weight"):
        session.ask("Hm?", plugin={"a": float("nan")})
    assert session.snapshot() is now


@each_variant
def test_a_saved_session_keeps_its_plugins_by_content(models, variant, tmp_path):
    engine = engine_on(models[variant])
    choice = {"a": 0.75, "b": -0.5}
    for i, name in enumerate("ab"):
        engine.plugins.load(lora(tmp_path / name, engine.model, i))
    session = engine.session(plugin=choice)
    ids(session)
    session.save(tmp_path / "talk")
    again = engine.load_session(tmp_path / "talk")
    assert again.plugin == choice
    assert ids(again, "And now?") == ids(session, "And now?") and torch.equal(state_of(again), state_of(session))
    del session, again
    engine.plugins.load(lora(tmp_path / "other", engine.model, 7), "b")  # another content under the same name
    with pytest.raises(IntegrityError, match=r"not loaded: b \("):
        engine.load_session(tmp_path / "talk")
    engine.plugins.load(tmp_path / "b", "renamed")
    assert engine.load_session(tmp_path / "talk").plugin == choice


@pytest.mark.parametrize("variant", RECURRENT)
def test_a_state_plugin_says_how_a_session_begins(models, variant, tmp_path):
    engine = engine_on(models[variant])
    model = engine.model
    for i, name in enumerate("st"):
        info = engine.plugins.load(start(tmp_path / f"{name}.safetensors", model, i))
        assert info.kind == "state" and info.name == name and info.parameters > 0
    engine.plugins.load(lora(tmp_path / "a", model, 1))
    blend = engine.session(plugin={"s": 0.5, "t": 2.0, "a": 1.0})
    leaves = [state_plugin.read(tmp_path / f"{name}.safetensors", model.decoder).leaves for name in "st"]
    for name, leaf in blend._now.feed.state.leaves.items():
        if name in leaves[0]:
            torch.testing.assert_close(leaf, 0.5 * leaves[0][name] + 2 * leaves[1][name])
    plain, seeded = engine.session(), engine.session(plugin="s")
    ids(plain)
    said = ids(seeded)
    assert gap(state_of(plain), state_of(seeded)) > 1e-3
    assert seeded.position == plain.position
    late = engine.session()
    ids(late)
    with pytest.raises(UnsupportedError, match="how a session begins"):
        late.use("s")
    with pytest.raises(UnsupportedError, match="how a session begins"):
        late.ask("Hm?", plugin="s")
    late = engine.session()
    late.use("s")  # nothing was read yet
    assert ids(late) == said
    ids(late, "Hm?", plugin="a")  # LoRA for one question: the beginning stays
    assert late.plugin == {"s": 1.0}
    late.save(tmp_path / "talk")
    assert engine.load_session(tmp_path / "talk").plugin == {"s": 1.0}


def test_state_plugins_that_do_not_fit(models, tmp_path):
    engine, attention = engine_on(models["delta"]), engine_on(models["transformer"])
    path = start(tmp_path / "s.safetensors", engine.model, 1)
    with pytest.raises(UnsupportedError, match="needs a recurrent model"):
        attention.plugins.load(path)
    with pytest.raises(IntegrityError, match="another base model"):
        engine_on(models["rwkv7"]).plugins.load(path)
    name, leaf = next(iter(state_plugin.recurrent(engine.model.decoder).items()))
    for wrong in (leaf[..., :-1], leaf * float("nan"), leaf):
        state_plugin.write(path, {name: wrong})
        with pytest.raises(IntegrityError):
            engine.plugins.load(path)
    hybrid = state_plugin.recurrent(models["hybrid"].decoder)
    assert hybrid and not any(name.endswith("kv") for name in hybrid)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(IntegrityError, match="damaged"):
        engine.plugins.load(path)


def test_what_cannot_be_loaded_changes_nothing(models, tmp_path):
    engine = engine_on(models["delta"])
    engine.plugins.load(lora(tmp_path / "a", engine.model, 1))
    doors = [door for door in engine.model.decoder.modules() if isinstance(door, Linear)]
    before = [dict(door.plugins) for door in doors]
    wrong = lora(tmp_path / "wrong", models["rwkv7"], 2)
    for load in (engine.plugins.load, engine.plugins.verify):
        with pytest.raises(IntegrityError, match="in this model"):
            load(wrong)
        with pytest.raises(ModelNotFoundError):
            load(tmp_path / "nowhere")
    (tmp_path / "b").mkdir()
    with pytest.raises(ModelNotFoundError, match="adapter_config"):
        engine.plugins.load(tmp_path / "b")
    checked = engine.plugins.verify(lora(tmp_path / "c", engine.model, 3))
    assert checked.name == "c" and checked.targets and "someone/base" in checked.warnings[0]
    assert [dict(door.plugins) for door in doors] == before and [i.name for i in engine.plugins.list()] == ["a"]
    with pytest.raises(ModelNotFoundError):
        engine.plugins.unload("c")


def test_the_low_level_call_takes_a_plugin(tmp_path):
    folder = write_model(tmp_path, "delta")
    plain = load_model(folder, dtype="fp64")
    path = lora(tmp_path / "a", plain, 1)
    model, table = load_model(folder, dtype="fp64", plugin=path), torch.tensor([[5, 9, 30]])
    whole, _ = model(table)
    first, half = model(table[:, :2])
    assert gap(torch.cat([first, model(table[:, 2:], half)[0]], 1), whole) <= 1e-10
    assert gap(whole, plain(table)[0]) > 1e-3 and model.explain()["plugins"] == ["a"]
    assert json.loads((path / "adapter_config.json").read_text())["peft_type"] == "LORA"


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_on_low_bit_weights_a_plugin_adds_the_same(tmp_path, quant):
    """The base's own low-bit matrices with the plugin merged in: what the formats round, the plugin does not touch."""
    folder = write_model(tmp_path, "delta")
    model, dense = load_model(folder, dtype="fp32", quant=quant), load_model(folder, dtype="fp32")
    path = lora(tmp_path / "a", model, 1)
    info = model.plugins.load(path)
    doors = dict(dense.decoder.named_modules())
    for name, door in model.decoder.named_modules():
        if isinstance(door, Linear):
            matrix, update = door.matrix().float(), door.plugins.get(info.digest)
            doors[name].parts["weight"].copy_(matrix if update is None else matrix + update.B @ update.A)
    table = torch.tensor([[5, 9, 30, 7]])
    route = model.plugins.route("a")
    assert gap(model(table, route=route)[0], dense(table)[0]) <= 2e-2  # low-bit kernels round the activations
    assert gap(model(table, route=route)[0], model(table)[0]) > 0.05
