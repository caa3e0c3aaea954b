"""The plugin examples: forms that can be read back, training that touches the plugin only, and what is shipped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from examples.pebble.evaluate import answers, wrapped
from examples.plugins import data, lora, site, start
from examples.plugins.evaluate import SHIPPED
from examples.plugins.forms import FORMS, IMAGES, VIDEOS
from examples.plugins.train import NAMES, place, rate
from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.peft_config import read_config
from fluvial.engine.model import Model, load_model
from fluvial.engine.plugin_folders import digest_of
from tests.engine.tiny import write_model

HELD_OUT = [s for s in data.held_out(77, 1) if s.qa[0].task in (*IMAGES, *VIDEOS)]


@pytest.mark.parametrize("name", FORMS)
def test_what_is_said_in_a_form_is_read_back(name: str) -> None:
    form, covered = FORMS[name], 0
    for sample in [*data.held_out(5, 4), *data.talks(5, 4, 3)]:
        for qa in sample.qa:
            if (said := form.say(qa.task, qa.answer)) is not None:
                covered += 1
                assert form.read(qa.task, said) == qa.answer and said != qa.answer
                assert form.read(qa.task, qa.answer) is None and form.read(qa.task, "?" + said) is None
    assert covered >= 50


def test_held_out_questions_are_no_training_questions() -> None:
    """Seeds of different lengths or with another second number draw other numbers."""
    draws = {tuple(np.random.default_rng(seed).random(3)) for seed in ([1, 6, 7], [1, 7, 7], [1, 8], [1, 9], [1, 2, 7])}
    assert len(draws) == 5


@pytest.mark.parametrize(("name", "variant"), [("json", "delta"), ("record", "transformer"), ("site", "delta")])
def test_training_changes_the_plugin_only_and_what_is_written_loads(
    name: str, variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "PICTURES", 2)
    monkeypatch.setattr(data, "CLIPS", 1)
    base = load_model(write_model(tmp_path / "base", variant))
    model, rng = wrapped(base).requires_grad_(False), np.random.default_rng(2)
    tokenizer = Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    torch.manual_seed(0)
    if name in FORMS:
        tensors = lora.attach(model.decoder, "new")
        batch = data.batch(rng, tokenizer, FORMS[name])
    else:
        tensors = start.attach(model.decoder, "new", torch.tensor([tokenizer.encode(site.TEXT).ids]))
        batch = data.site_batch(rng, tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer, losses = torch.optim.AdamW(tensors.values(), lr=2e-2), []
    for step in range(5):
        loss, _ = model.loss(batch, {"new": 1.0})
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad is None for p in model.parameters()) and rate(step, 5) > 0
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.99 * losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    (lora if name in FORMS else start).write(tmp_path / "plugin", tensors, "base")
    info = base.plugins.load(tmp_path / "plugin")
    assert info.kind == ("lora" if name in FORMS else "state") and not info.warnings
    with torch.no_grad():
        trained, shipped = (model.loss(batch, route)[0] for route in ({"new": 1.0}, base.plugins.route("plugin")))
    assert shipped.item() == pytest.approx(trained.item(), rel=2e-2) and shipped.item() < 0.99 * losses[0]


# --- what is shipped ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def shipped(request: pytest.FixtureRequest) -> tuple[str, Model]:
    return request.param, load_model(NAMES[request.param])


def test_shipped_plugins_answer_in_their_form_and_leave_the_base_alone(shipped: tuple[str, Model]) -> None:
    variant, base = shipped
    model, tokenizer = wrapped(base), Tokenizer.from_file(str(base.folder / "tokenizer.json"))
    ids = torch.randint(0, 1000, (2, 40), generator=torch.Generator().manual_seed(1))
    logits = base(ids)[0]
    plain = answers(model, tokenizer, HELD_OUT)
    tasks, facts = [sample.qa[0].task for sample in HELD_OUT], data.facts_held_out(77, 8)
    for name, form in FORMS.items():
        load(base, name, variant)
        said = answers(model, tokenizer, HELD_OUT, base.plugins.route(name))
        read = [form.read(task, text) for task, text in zip(tasks, said, strict=True)]
        assert sum(answer is not None for answer in read) >= len(said) - 2, said
        right = sum(answer == sample.qa[0].answer for answer, sample in zip(read, HELD_OUT, strict=True))
        assert right >= len(said) // 2, said
    if variant == "transformer":
        with pytest.raises(UnsupportedError, match="recurrent"):
            base.plugins.load(place("site", "delta"))
    else:
        load(base, "site", variant)
        told = answers(model, tokenizer, facts, base.plugins.route("site"))
        assert sum(text == sample.qa[0].answer for text, sample in zip(told, facts, strict=True)) >= 6, told
    assert answers(model, tokenizer, HELD_OUT) == plain and torch.equal(base(ids)[0], logits)


def load(base: Model, name: str, variant: str) -> None:
    path = place(name, variant)
    info = base.plugins.load(path)
    assert (info.name, info.kind, info.warnings) == (name, "lora" if name in FORMS else "state", ())
    assert sum(file.stat().st_size for file in path.iterdir()) < 200_000


def test_peft_reads_what_is_shipped() -> None:
    peft = pytest.importorskip("peft")
    for variant in NAMES:
        folder = place("json", variant)
        theirs, ours = peft.LoraConfig.from_pretrained(str(folder)), read_config(folder)
        assert (theirs.r, theirs.lora_alpha, theirs.target_modules) == (ours.rank, ours.alpha, set(ours.targets))
        assert theirs.base_model_name_or_path == NAMES[variant]
        loaded = peft.utils.load_peft_weights(str(folder), device="cpu")
        assert all(tensor.shape[0 if "lora_A" in name else 1] == ours.rank for name, tensor in loaded.items())


def test_the_results_are_of_what_is_shipped() -> None:
    for found in json.loads((Path(data.__file__).parent / "results.json").read_text())["results"]:
        there = {name: path for name in SHIPPED if (path := place(name, found["variant"])).exists()}
        assert found["untouched"] is True
        assert found["plugins"] == {name: digest_of(path) for name, path in there.items()}, "evaluate them again"
