"""Short videos at 2 frames a second and their questions.

A model that looks at frames in pairs (2k, 2k+1) must be able to answer: objects appear in different pairs, a code
fills exactly one pair, and a moving object moves by at least MIN_STEP between the two frames of a pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import render, scene
from .phrasings import ask
from .printed import glyph_objects, place_line, print_on
from .scene import COLOURS, QA, Object, Sample, Track, pick

VIDEO_TASKS = ("first", "last", "moving", "direction", "flash_code", "video_count")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MIN_STEP = 0.042
FPS = 2.0


def _appearing(rng: np.random.Generator, level: float, frames: int, least: int = 1) -> list[Track]:
    """Objects that come one after the other, each in its own pair of frames; some leave again."""
    most = min(2 + round(3 * level), frames // 2)
    n = int(rng.integers(min(least, most), most + 1))
    objects = scene.place(rng, level * 0.8, scene.kinds(rng, n, distinct=True), in_cells=False)
    starts = np.sort(rng.permutation(frames // 2)[:n]) * 2
    tracks = []
    for o, start in zip(objects, starts + rng.integers(0, 2, n), strict=True):
        stop = frames if rng.random() < 0.5 else int(rng.integers(min(start + 2, frames), frames + 1))
        tracks.append(Track(o, int(start), stop))
    return tracks


def _moving(rng: np.random.Generator, level: float, frames: int) -> tuple[list[Track], str]:
    """One object moves on a straight line at constant speed, the first of the list; the others stand still."""
    direction = pick(rng, tuple(DIRECTIONS))
    n = int(rng.integers(1, 3 + round(2 * level)))
    for attempt in range(200):
        names = scene.kinds(rng, max(n - attempt // 20, 1), distinct=True)
        low, high = scene.radius_range(level * 0.8, len(names) + 2)
        r = float(rng.uniform(low, high)) * scene.GROW[names[0][0]]
        room = 1 - 2 * r
        pairs = min(frames // 2, int(room / MIN_STEP) // 2)
        pairs = int(rng.integers(min(3, pairs), pairs + 1))  # the object rests outside of these pairs
        start = 2 * int(rng.integers(0, frames // 2 - pairs + 1))
        steps = 2 * pairs - 1
        if room / steps < MIN_STEP:
            continue
        step = float(rng.uniform(MIN_STEP, min(room / steps, 0.14)))
        from_low, across = float(rng.uniform(r, 1 - r - step * steps)), float(rng.uniform(r, 1 - r))
        sign = sum(DIRECTIONS[direction])
        along = from_low if sign > 0 else from_low + step * steps
        dx, dy = (d * step for d in DIRECTIONS[direction])
        x, y = (along, across) if dx else (across, along)
        mover = Object(*names[0], x, y, r)
        path = [Object("", "", x + k * dx, y + k * dy, r) for k in range(steps + 1)]
        others = scene.place(rng, level * 0.8, names[1:], in_cells=False, avoid=path)
        if len(others) == len(names) - 1:
            break
    tracks = [Track(mover, 0, frames, start, start + steps, dx, dy)]
    return tracks + [Track(o, 0, frames) for o in others], direction


def video_plan(
    rng: np.random.Generator, level: float, questions: int, frames: int, tasks: Sequence[str]
) -> tuple[list[Track], str | None, int, list[QA]]:
    """Tracks, the code if any, the first of its two frames, and the questions; nothing drawn."""
    unknown = set(tasks) - set(VIDEO_TASKS)
    if unknown or not tasks:
        raise ValueError(f"unknown video tasks {sorted(unknown)}; there are {VIDEO_TASKS}")
    families = [
        f
        for f in (("first", "last"), ("moving", "direction"), ("flash_code",), ("video_count",))
        if set(f) & set(tasks)
    ]
    family = pick(rng, families)
    code, code_at, truth = None, 0, {}
    if family[0] == "moving":
        tracks, truth["direction"] = _moving(rng, level, frames)
        truth["moving"] = scene.phrase(tracks[0].object)
    else:
        # in a video to be counted every number is as likely; "first" means little with one object
        tracks = _appearing(rng, level, frames, least=2 if family[0] == "first" else 1)
        if family[0] == "flash_code":
            tracks = tracks[: int(rng.integers(0, 4))]
            code = "".join(str(d) for d in rng.integers(0, 10, rng.integers(2, 4 + round(level))))
            code_at = 2 * int(rng.integers(0, frames // 2))
            truth["flash_code"] = code
            for t in tracks:  # the code hides the shapes, so none may come or go with it
                if code_at <= t.start < code_at + 2 or t.stop <= code_at + 2:
                    t.start, t.stop = 0, frames
        else:
            truth["first"], truth["last"] = scene.phrase(tracks[0].object), scene.phrase(tracks[-1].object)
    if code is None:
        truth["video_count"] = str(len(tracks))
    order = [t for t in truth if t in tasks]
    order = [order[i] for i in rng.permutation(len(order))][:questions]
    return tracks, code, code_at, [QA(t, ask(rng, t), truth[t]) for t in order]


def video_sample(
    rng: np.random.Generator,
    level: float,
    questions: int = 5,
    size: int = 128,
    frames: int = 8,
    tasks: Sequence[str] | None = None,
) -> Sample:
    """A video uint8 [frames, size, size, 3] (an odd `frames` is rounded up) with 1 to `questions` questions.

    Raises ValueError for an unknown task or fewer than 6 frames (2 where only a code is asked for).
    """
    frames += frames % 2
    tasks = VIDEO_TASKS if tasks is None else tasks
    least = 2 if set(tasks) == {"flash_code"} else 6
    if frames < least:
        raise ValueError(f"a video of this world has at least {least} frames, not {frames}")
    tracks, code, code_at, qa = video_plan(rng, level, questions, frames, tasks)
    looks = [render.sample_look(rng, t.object.colour, level) for t in tracks]
    ink_colour = pick(rng, COLOURS)
    ink = render.sample_look(rng, ink_colour, level)
    ground = render.background(rng, level, size, looks if code is None else [*looks, ink], quiet=code is not None)
    printed: list[Object] = []
    mask = None
    if code is not None:
        line, _ = place_line(rng, level, code, low=0.25)
        mask, centres = line.draw(size)
        printed = glyph_objects(line, ink_colour, centres)
    objects = [t.object for t in tracks]
    capture = render.sample_capture(rng, level, size, [*objects, *printed])
    pictures = []
    for f in range(frames):
        canvas = ground.copy()
        if mask is not None and code_at <= f < code_at + 2:
            print_on(canvas, mask, ink)
        else:
            for t, look in zip(tracks, looks, strict=True):
                at = t.at(f)
                if at is not None:
                    render.draw_shape(canvas, t.object, look, *at)
        pictures.append(render.develop(rng, canvas, capture))
    return Sample(
        frames=np.stack(pictures),
        times=np.arange(frames) / FPS,
        qa=qa,
        objects=objects,
        glyphs=printed,
        tracks=tracks,
        code_at=None if code is None else code_at,
    )
