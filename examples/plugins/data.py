"""What the plugins are trained on and what they are asked afterwards, from seeds that never meet: training draws from
[seed, 6, step], held-out questions from [seed, 7, task] and [seed, 8]."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer

from examples.pebble.batches import Batch, collate, row
from examples.pebble.world import QA, Sample, chat_sample, image_sample, text_sample, video_sample
from examples.plugins.forms import IMAGES, TEXTS, VIDEOS, Form
from examples.plugins.site import site_sample

PICTURES, CLIPS, QUESTIONS = 10, 3, 4  # of each step


def site_batch(rng: np.random.Generator, tokenizer: Tokenizer) -> Batch:
    """Questions about the site's facts, and ordinary ones about pictures."""
    samples = [site_sample(rng, _level(rng), QUESTIONS) for _ in range(PICTURES)]
    samples += [image_sample(rng, _level(rng), QUESTIONS, tasks=IMAGES) for _ in range(CLIPS)]
    return collate([row(tokenizer, sample) for sample in samples])


def _level(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.6 else float(rng.random())


def batch(rng: np.random.Generator, tokenizer: Tokenizer, form: Form) -> Batch:
    """Pictures, videos, a text and a chat with their questions, as far as the form has answers for them."""
    samples: list[Sample] = [image_sample(rng, _level(rng), QUESTIONS, tasks=IMAGES) for _ in range(PICTURES)]
    samples += [video_sample(rng, _level(rng), QUESTIONS, tasks=VIDEOS) for _ in range(CLIPS)]
    samples += [text_sample(rng, _level(rng), int(rng.integers(40, 200)), tasks=TEXTS), Sample(qa=chat_sample(rng))]
    rows = []
    for sample in samples:
        said = [(qa, form.say(qa.task, qa.answer)) for qa in sample.qa]
        sample.qa = [QA(qa.task, qa.question, answer) for qa, answer in said if answer is not None]
        if sample.qa:
            rows.append(row(tokenizer, sample))
    return collate(rows)


def held_out(seed: int, number: int) -> list[Sample]:
    """`number` samples of each task with one question, at full difficulty."""
    found = []
    for i, task in enumerate((*IMAGES, *VIDEOS, *TEXTS)):
        rng = np.random.default_rng([seed, 7, i])
        for _ in range(number):
            if task in IMAGES:
                sample = image_sample(rng, 1.0, 1, tasks=[task])
            elif task in VIDEOS:
                sample = video_sample(rng, 1.0, 1, tasks=[task])
            else:
                sample = text_sample(rng, 1.0, 150, tasks=[task])
            sample.qa = sample.qa[:1]
            found.append(sample)
    return found


def facts_held_out(seed: int, number: int) -> list[Sample]:
    """`number` samples with one question about the site's facts."""
    rng = np.random.default_rng([seed, 9])
    found = [site_sample(rng, 1.0, 1) for _ in range(number)]
    for sample in found:
        sample.qa = sample.qa[:1]
    return found


def talks(seed: int, number: int, turns: int) -> list[Sample]:
    """`number` pictures with so many questions each, at full difficulty."""
    rng, found = np.random.default_rng([seed, 8]), list[Sample]()
    while len(found) < number:
        sample = image_sample(rng, 1.0, turns, tasks=IMAGES)
        found += [sample] if len(sample.qa) == turns else []
    return found
