"""Still pictures and their questions.

The scene and its questions are decided first and drawn last, so a scene without a fair question costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import render, scene
from .glyphs import Line
from .image_questions import ASK
from .phrasings import ask
from .printed import PRINTED, glyph_objects, print_on, sample_print
from .scene import COLOURS, QA, Object, Sample, pick

IMAGE_TASKS = ("colour", "shape", "count", "count_by", "exists", "position", "describe", "number", "word", "size")


def image_plan(
    rng: np.random.Generator, level: float, questions: int, tasks: Sequence[str]
) -> tuple[list[Object], Line | None, list[QA]]:
    """The objects, the printed line if any, and the questions of one picture; nothing drawn."""
    unknown = set(tasks) - set(IMAGE_TASKS)
    if unknown or not tasks:
        raise ValueError(f"unknown image tasks {sorted(unknown)}; there are {IMAGE_TASKS}")
    on_shapes = [t for t in tasks if t in ASK]
    on_print = [t for t in tasks if t in PRINTED]
    while True:
        kind = pick(rng, on_print) if not on_shapes or (on_print and rng.random() < 0.3) else None
        qa: list[QA] = []
        line: Line | None = None
        blocked: list[Object] = []
        if kind:
            line, blocked = sample_print(rng, level, kind)
            qa.append(QA(kind, ask(rng, kind), line.text))
        n = int(rng.integers(0, 1 + round(2 * level)) if kind else rng.integers(1, 3 + round(4 * level)))
        in_cells = bool(rng.random() < 0.7) and not kind
        objects = scene.place(rng, level, scene.kinds(rng, n), in_cells, blocked)
        if n > 1 and "size" in tasks and rng.random() < 0.5:
            scene.make_one_largest(objects)
        seen: set[tuple[str, str]] = set()
        for _ in range(4 * questions if on_shapes else 0):
            if len(qa) == questions:
                break
            task = pick(rng, on_shapes)
            question = ASK[task](rng, objects, in_cells)
            if question and (task, question[0]) not in seen:
                seen.add((task, question[0]))
                qa.append(QA(task, ask(rng, task, **question[1]), question[2]))
        if qa:
            return objects, line, qa


def image_sample(
    rng: np.random.Generator, level: float, questions: int = 6, size: int = 128, tasks: Sequence[str] | None = None
) -> Sample:
    """One picture uint8 [size, size, 3] with 1 to `questions` different questions of the given tasks (None = all).

    level 0 is one or two big shapes on a plain ground, level 1 the full difficulty. Same generator state, same pixels.
    Raises ValueError for an unknown task.
    """
    objects, line, qa = image_plan(rng, level, questions, IMAGE_TASKS if tasks is None else tasks)
    looks = [render.sample_look(rng, o.colour, level) for o in objects]
    ink_colour = pick(rng, COLOURS)
    ink = render.sample_look(rng, ink_colour, level)
    canvas = render.background(rng, level, size, looks if line is None else [*looks, ink], quiet=line is not None)
    for o, look in zip(objects, looks, strict=True):
        render.draw_shape(canvas, o, look)
    printed: list[Object] = []
    if line is not None:
        mask, centres = line.draw(size)
        print_on(canvas, mask, ink)
        printed = glyph_objects(line, ink_colour, centres)
    image = render.develop(rng, canvas, render.sample_capture(rng, level, size, [*objects, *printed]))
    return Sample(image=image, qa=qa, objects=objects, glyphs=printed)
