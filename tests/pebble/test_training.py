"""Training sees exactly what a session feeds, and its checkpoints load as everyone's do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from examples.pebble.batches import MEDIA, collate, media_batch, row, text_batch, text_length
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
