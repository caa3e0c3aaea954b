"""Lines of every kind of text the model meets, to train its byte-level tokenizer on. Held-out filler is not in it."""

from __future__ import annotations

import numpy as np

from .chat import chat_sample
from .filler import filler
from .images import IMAGE_TASKS, image_plan
from .scene import QA
from .texts import text_sample
from .videos import VIDEO_TASKS, video_plan


def corpus(rng: np.random.Generator, n_lines: int) -> list[str]:
    """n_lines lines, half of them questions with answers, half filler and texts with facts."""
    lines: list[str] = []
    while len(lines) < n_lines:
        kind = rng.random()
        qa: list[QA] = []
        if kind < 0.25:
            qa = image_plan(rng, 1.0, 4, IMAGE_TASKS)[2]
        elif kind < 0.35:
            qa = video_plan(rng, 1.0, 3, 8, VIDEO_TASKS)[3]
        elif kind < 0.45:
            qa = chat_sample(rng)
        elif kind < 0.6:
            sample = text_sample(rng, 1.0, int(rng.integers(40, 300)))
            lines += (sample.text or "").splitlines()
            qa = sample.qa
        else:
            lines += filler(rng, int(rng.integers(40, 300))).splitlines()
        lines += [line for q in qa for line in (q.question, q.answer)]
    return lines[:n_lines]
