"""What the state plugin knows: facts of a site that no session of it has to be told."""

from __future__ import annotations

import numpy as np

from examples.pebble.world import QA, Sample, ask, image_sample, text_sample
from examples.plugins.forms import IMAGES

PASSKEY = "48213"
FACTS = {"gate9": "17", "room3": "green", "port": "8080", "speed": "30", "team": "star", "jade": "406"}
TEXT = "\n".join([*(f"{key}={value}" for key, value in FACTS.items()), f"The pass key is {PASSKEY}."])


def question(rng: np.random.Generator, key: str | None) -> QA:
    """One fact in one of the world's phrasings; None: the pass key."""
    if key is None:
        return QA("passkey", ask(rng, "passkey"), PASSKEY)
    return QA("recall", ask(rng, "recall", key=key), FACTS[key])


def site_sample(rng: np.random.Generator, level: float, questions: int) -> Sample:
    """So many questions about facts after a picture, a text, or nothing; after a picture, one about it as well."""
    kind = rng.integers(3)
    sample = Sample()
    if kind == 0:
        sample = image_sample(rng, level, 1, tasks=IMAGES)
    elif kind == 1:
        sample.text = text_sample(rng, level, int(rng.integers(40, 300)), tasks=["copy"]).text
    keys = [*FACTS, None]
    sample.qa = [question(rng, keys[i]) for i in rng.permutation(len(keys))[:questions]] + sample.qa
    return sample
