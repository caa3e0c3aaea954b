"""Training sees exactly what a session feeds, and its checkpoints load as everyone's do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from examples.pebble.batches import MEDIA, collate, row
from examples.pebble.export import GATES, blended
from examples.pebble.memory import idle_batch, idle_loss, quiet_text, quiet_video
from examples.pebble.mixture import TURNS, Sizes, media_batch, mixture, text_batch, text_length
from examples.pebble.model import Pebble
from examples.pebble.optim import Optimizers
from examples.pebble.tokens import ASSISTANT
from examples.pebble.world import image_sample, text_sample, video_sample
from fluvial.encoders.frame import Frame
from fluvial.engine.media import Image
from fluvial.engine.session import Session
from tests.engine.tiny import tiny


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    from tests.engine.tiny import write_model

    folder = write_model(tmp_path_factory.mktemp("pebble"), "delta")
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", ["image", "video", "text"])
def test_a_session_feeds_what_training_saw(kind, tokenizer):
    rng, model = np.random.default_rng(5), tiny("delta")
    session = Session(model)
    if kind == "image":
        sample = image_sample(rng, 0.5, 1)
        session.push(Image(sample.image))
    elif kind == "video":
        sample = video_sample(rng, 0.5, 1)
        for i, rgb in enumerate(sample.frames):
            session.push(Frame(rgb, t=i / 2, index=i))
    else:
        sample = text_sample(rng, 0.5, 300)
        session.push(sample.text)
    list(session.ask(sample.qa[0].question, max_tokens=1))
    trained = row(tokenizer, sample).ids
    prompt = trained[: trained.index(ASSISTANT) + 1]
    markers = (MEDIA, model.tokenizer.id("<|image|>"), model.tokenizer.id("<|frame|>"))  # fed, but not in recent ids
    spoken = [id for id in prompt if id not in markers]
    assert list(session._now.ids[: len(spoken)]) == spoken
    assert session.position - len(session._now.ids) == len(prompt) - len(spoken)


def test_padding_and_media_slots_line_up(tokenizer):
    rng = np.random.default_rng(3)
    batch = media_batch(rng, tokenizer, 1.0, 2, 2)
    slots = (batch.ids == MEDIA).sum(1)
    assert slots[:2].tolist() == [64, 64] and all(n % 16 == 0 for n in slots[2:].tolist())
    assert batch.images.shape[1:] == (2, 128, 128, 3) and len(batch.images) == 2
    assert len(batch.videos) * 16 == slots[2:].sum()
    assert not (batch.answer & (batch.ids == MEDIA)).any()


def test_a_few_steps_of_training_lower_the_loss(tokenizer):
    torch.manual_seed(0)
    model = Pebble("delta").train()
    optimizers = Optimizers([model], 4e-3, 2e-3)
    rng = np.random.default_rng(1)
    batch = collate([row(tokenizer, image_sample(rng, 0.0, 2)) for _ in range(2)])
    losses = []
    for step in range(8):
        optimizers.schedule(0.0, 60 + step)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = model.loss(batch)
        loss.backward()
        optimizers.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_text_batches_have_about_the_asked_size(tokenizer):
    rng = np.random.default_rng(2)
    assert text_length(rng, 0.0) <= 256
    batch = text_batch(rng, tokenizer, 1.0, 1024, 128)
    assert 4 <= len(batch.ids) <= 12 and batch.answer.any(1).all()


@pytest.mark.parametrize("seed", range(4))
def test_idle_rows_line_up_and_never_repeat_the_code(tokenizer, seed):
    rng = np.random.default_rng(seed)
    clip = quiet_video(rng, tokenizer, 0.5, 300)
    assert clip.ids.count(MEDIA) == 16 * len(clip.shown) and max(clip.shown) < len(clip.pictures)
    text = quiet_text(rng, tokenizer, 0.5, 60)
    for made in (clip, text):
        assert 0 < sum(made.idle) < len(made.idle) <= len(made.answer) == len(made.ids)
        assert not any(a and i for a, i in zip(made.answer, made.idle, strict=False))
    batch = idle_batch(rng, tokenizer, 0.5, 600, True)
    assert len(batch.shown) * 16 == (batch.ids == MEDIA).sum() and batch.idle.any(1).all()


def test_only_writing_and_forgetting_on_idle_tokens_have_a_price(tokenizer):
    torch.manual_seed(0)
    model = Pebble("delta")
    batch = idle_batch(np.random.default_rng(1), tokenizer, 0.5, 300, False)
    with torch.no_grad():
        for block in model.decoder.blocks[::2]:
            block.mixer.dt_bias.fill_(-14)  # all heads are slow
        plain, _ = model.loss(batch)
        full, _ = idle_loss(model, batch)
        free, _ = idle_loss(model, batch, price=0.0, price_of_decay=0.0)
        for block in model.decoder.blocks[::2]:
            block.mixer.dt_bias.fill_(2)  # none is
        fast, _ = idle_loss(model, batch)
        again, _ = model.loss(batch)
    assert torch.equal(plain, free) and full > plain + 0.1
    assert torch.equal(fast, again)


def test_a_clip_may_be_one_code():
    sample = video_sample(np.random.default_rng(4), 0.5, 1, frames=2, tasks=["flash_code"])
    assert len(sample.frames) == 2 and sample.code_at == 0
    with pytest.raises(ValueError, match="at least 6"):
        video_sample(np.random.default_rng(4), 0.5, 1, frames=4, tasks=["first"])


def test_a_blend_takes_its_share_and_leaves_the_gates_alone():
    run = {"decoder.blocks.4.mixer.A_log": torch.ones(2), "decoder.norm.gain": torch.ones(2)}
    mixed = blended(run, {name: torch.zeros(2) for name in run}, 0.25, GATES)
    assert [float(t[0]) for t in mixed.values()] == [1.0, 0.75]


def test_every_step_has_print_to_read_and_the_rest_takes_turns(tokenizer):
    rng, sizes = np.random.default_rng(6), Sizes(images=1, videos=1, text=200, clips=2, events=1, idle=300)
    for step, turn in enumerate(TURNS):
        batches = mixture(rng, tokenizer, 0.5, sizes, step, 60)
        assert set(batches) == {"print", turn}
        assert all((batch.idle is not None) == (name in ("still", "filler")) for name, (batch, _) in batches.items())
    assert set(mixture(rng, tokenizer, 0.5, Sizes(images=1, videos=1, text=200), 0, 60)) == {"media", "text"}
