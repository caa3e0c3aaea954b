"""The procedural world: same seed same pixels, true answers, balanced answers, fair scenes, clean training filler."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from examples.pebble import world
from examples.pebble.world.glyphs import FONTS, STROKES
from examples.pebble.world.image_questions import ASK
from examples.pebble.world.images import image_plan
from examples.pebble.world.palette import contrast, sample_colour
from examples.pebble.world.texts import PAIRS
from examples.pebble.world.videos import DIRECTIONS, MIN_STEP, video_plan


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng((7, *seed))


def singular(things: str) -> str:
    return things.removesuffix("es") if things.endswith("crosses") else things.removesuffix("s")


def fits(objects: list[world.Object], thing: str) -> list[world.Object]:
    """The objects that a phrase such as 'red star', 'red shape' or 'star' names, read with a parser of its own."""
    words = [w for w in thing.split() if w not in ("a", "an", "shape")]
    return [o for o in objects if all(w in (o.shape, o.colour) for w in words)]


def truth(task: str, question: str, objects: list[world.Object], glyphs: list[world.Object]) -> str:
    """The answer, recomputed from the question's words and the list of objects."""
    slots = {"colour": "thing", "shape": "colour", "count_by": "things", "exists": "thing", "position": "thing"}
    found = ""
    for form in world.PHRASINGS[task]:
        pattern = re.escape(form.rstrip("?.")).replace(re.escape("{" + slots.get(task, "") + "}"), "(.+?)")
        hit = re.search(pattern + r"[?.]?$", question, re.IGNORECASE)
        if hit and hit.groups() and (not found or len(hit[1]) < len(found)):
            found = hit[1]
    if task in ("number", "word"):
        return "".join(g.shape for g in sorted(glyphs, key=lambda g: g.x))
    if task == "count":
        return str(len(objects))
    if task == "describe":
        order = sorted(objects, key=lambda o: (int(o.y * 3), int(o.x * 3)))
        return ", ".join(f"{'an' if o.colour == 'orange' else 'a'} {o.colour} {o.shape}" for o in order)
    if task == "size":
        assert sorted(o.r for o in objects)[-2] * 1.19 < max(o.r for o in objects)
        return max(objects, key=lambda o: o.r).shape
    if task == "count_by":
        return str(len(fits(objects, singular(found))))
    if task == "exists":
        return "yes" if fits(objects, found) else "no"
    (o,) = fits(objects, found)  # never asked of two
    if task == "position":
        assert all(abs(v - line) > 0.039 for v in (o.x, o.y) for line in (1 / 3, 2 / 3))
        rows, columns = ("top", "", "bottom"), ("left", "", "right")
        return f"{rows[int(o.y * 3)]} {columns[int(o.x * 3)]}".strip() or "center"
    return o.colour if task == "colour" else o.shape


def test_same_seed_same_sample():
    for make in (lambda r: world.image_sample(r, 1.0), lambda r: world.video_sample(r, 1.0)):
        for i in range(6):
            a, b, c = make(rng(i)), make(rng(i)), make(rng(i + 100))
            pixels = [s.image if s.image is not None else s.frames for s in (a, b, c)]
            assert np.array_equal(pixels[0], pixels[1]) and a.qa == b.qa and a.objects == b.objects
            assert not np.array_equal(pixels[0], pixels[2])
    assert world.text_sample(rng(1), 1.0, 500) == world.text_sample(rng(1), 1.0, 500)
    assert world.corpus(rng(1), 50) == world.corpus(rng(1), 50)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_answers_agree_with_the_objects(level):
    seen = Counter()
    for i in range(150):
        s = world.image_sample(rng(i), level, size=64)
        assert 1 <= len(s.qa) <= 6
        for q in s.qa:
            assert q.answer == truth(q.task, q.question, s.objects, s.glyphs), q
            seen[q.task] += 1
    assert set(seen) == set(world.IMAGE_TASKS)


def test_scenes_are_fair():
    for i in range(300):
        objects, line, qa = image_plan(rng(i), 1.0, 6, world.IMAGE_TASKS)
        assert len(objects) <= 6 and len({(q.task, q.question) for q in qa}) == len(qa)
        for k, o in enumerate(objects):
            assert 0.045 < o.r < 0.3 and all(o.r - 1e-9 <= v <= 1 - o.r + 1e-9 for v in (o.x, o.y))
            assert all((o.x - p.x) ** 2 + (o.y - p.y) ** 2 > (o.r + p.r) ** 2 for p in objects[:k])
        if line:
            mask, centres = line.draw(128)
            assert mask.max() > 0.9 and not mask[[0, -1]].any() and not mask[:, [0, -1]].any()
            assert ((centres > 0) & (centres < 1)).all()


def test_named_colours_stay_apart():
    samples = {c: np.stack([sample_colour(rng(i), c, 1.0) for i in range(40)]) for c in world.COLOURS}
    for a in world.COLOURS:
        assert all(contrast(samples[a], samples[b]).min() > 25 for b in world.COLOURS if a != b)


def test_answers_are_balanced():
    answers = {task: Counter() for task in world.IMAGE_TASKS}
    for i in range(2500):
        for q in image_plan(rng(i), 1.0, 6, tuple(ASK))[2]:
            answers[q.task][q.answer] += 1
    share = {task: {a: n / c.total() for a, n in c.items()} for task, c in answers.items()}
    assert abs(share["exists"]["yes"] - 0.5) < 0.05
    assert set(share["position"]) == set(world.CELLS) and max(share["position"].values()) < 0.15
    assert min(share["position"].values()) > 0.08
    assert set(share["count"]) == set("123456") and min(share["count"].values()) > 0.1
    assert 0.1 < share["count_by"]["0"] < 0.3 and set(share["count_by"]) == set("0123456")
    assert all(0.09 < share["colour"][c] < 0.16 for c in world.COLOURS)
    assert all(0.15 < share[t][s] < 0.25 for s in world.SHAPES for t in ("shape",))


def test_full_difficulty_has_all_features():
    from examples.pebble.world import backgrounds, render

    captures = [render.sample_capture(rng(i), 1.0, 32) for i in range(300)]
    assert any(c.light is not None for c in captures) and any(c.noise > 10 for c in captures)
    assert any(c.blur for c in captures) and {0} < {c.quality for c in captures}
    assert 15 <= min(c.quality for c in captures if c.quality) < 20 and max(c.quality for c in captures) > 90
    assert {backgrounds.sample_kind(rng(i), 1.0) for i in range(300)} == set(backgrounds.KINDS)
    easy = render.sample_capture(rng(0), 0.0, 32)
    assert (
        easy.light is None and not easy.noise and not easy.quality and backgrounds.sample_kind(rng(0), 0.0) == "plain"
    )
    assert max(len(image_plan(rng(i), 0.0, 1, ["count"])[0]) for i in range(60)) == 2
    assert all(c in STROKES for c in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") and len(FONTS) >= 8


def test_image_bounds_and_errors():
    for size in (64, 96, 128):
        s = world.image_sample(rng(size), 1.0, size=size)
        assert s.image is not None and s.image.shape == (size, size, 3) and s.image.dtype == np.uint8
    with pytest.raises(ValueError, match="unknown image tasks"):
        world.image_sample(rng(), 1.0, tasks=["smell"])
    for task in world.IMAGE_TASKS:
        assert {q.task for i in range(5) for q in image_plan(rng(i), 1.0, 6, [task])[2]} == {task}


def test_dense_labels():
    for i in range(40):
        s = world.image_sample(rng(i), 1.0, tasks=["count"])
        shape, colour = world.dense_labels(s, 8)
        assert shape.shape == (8, 8) and shape.dtype == np.int64 and ((shape > 0) == (colour > 0)).all()
        cells = Counter((int(o.y * 8), int(o.x * 8)) for o in s.objects)
        for o in s.objects:
            at = int(o.y * 8), int(o.x * 8)
            if cells[at] == 1:
                assert world.SHAPE_CLASSES[shape[at]] == o.shape and world.COLOUR_CLASSES[colour[at]] == o.colour
    s = world.image_sample(rng(0), 1.0, tasks=["word"])
    labelled = {world.SHAPE_CLASSES[c] for c in np.unique(world.dense_labels(s, 32)[0])}
    assert set(s.qa[0].answer) <= labelled
    with pytest.raises(ValueError, match="image"):
        world.dense_labels(world.video_sample(rng(0), 0.0), 8)


@pytest.mark.parametrize("frames", [6, 7, 8, 12, 16, 24])
def test_videos_are_true_and_even(frames):
    s = world.video_sample(rng(frames), 1.0, size=64, frames=frames)
    assert s.frames is not None and s.times is not None
    assert len(s.frames) == frames + frames % 2 == len(s.times) and np.allclose(np.diff(s.times), 0.5)
    for i in range(80):
        even = frames + frames % 2
        tracks, code, code_at, qa = video_plan(rng(frames, i), 1.0, 5, even, world.VIDEO_TASKS)
        names = [f"{world.scene.article(t.object.colour)} {t.object.colour} {t.object.shape}" for t in tracks]
        seen = [[f for f in range(even) if t.at(f) is not None] for t in tracks]
        assert len(set(names)) == len(names) and all(seen) and code_at % 2 == 0 and code_at + 2 <= even
        for q in qa:
            if q.task in ("first", "last"):
                pairs = [f[0] // 2 for f in seen]
                assert len(set(pairs)) == len(pairs)
                assert q.answer == names[pairs.index((min if q.task == "first" else max)(pairs))]
            elif q.task == "video_count":
                assert q.answer == str(len(tracks))
            elif q.task == "flash_code":
                assert q.answer == code and code.isdigit() and 2 <= len(code) <= 4
            else:
                paths = [np.array([t.at(f) for f in range(even)]) for t in tracks]
                moved = [k for k, p in enumerate(paths) if np.ptp(p, 0).max() > 0]
                steps = np.diff(paths[moved[0]], axis=0)
                steps = steps[np.abs(steps).sum(1) > 1e-9]
                assert len(moved) == 1 and np.allclose(steps, steps[0]) and np.abs(steps[0]).max() >= MIN_STEP - 1e-9
                assert paths[moved[0]].min() > 0 and paths[moved[0]].max() < 1
                sign = tuple(np.sign(np.round(steps[0], 6)).astype(int).tolist())
                assert q.answer == (
                    names[moved[0]] if q.task == "moving" else next(d for d in DIRECTIONS if DIRECTIONS[d] == sign)
                )


def test_texts_hold_one_answer():
    for i in range(300):
        length = (40, 128, 600, 2500)[i % 4]
        s = world.text_sample(rng(i), 1.0, length, held_out=i % 3 == 0)
        assert s.text is not None and 1 <= len(s.qa) <= 4 and abs(len(s.text) - length) < 60 + 0.5 * length
        for q in s.qa:
            if q.task == "passkey":
                assert len(q.answer) == 5 and s.text.count(q.answer) == 1
            elif q.task == "copy":
                assert q.answer in q.question and q.answer.strip() == q.answer != ""
            else:
                forms = [re.escape(p).replace(r"\{k\}", r"(?<!\w)(\w+)").replace(r"\{v\}", r"(\w+)") for p in PAIRS]
                pairs = {m for f in forms for m in re.findall(f, s.text)}
                assert any(v == q.answer and re.search(rf"(?<!\w){k}(?!\w)", q.question) for k, v in pairs), (q, s.text)


def test_filler_kinds():
    for kind in world.FILLER_KINDS:
        for n in (0, 1, 333):
            text = world.filler(rng(n), n, kind)
            assert len(text) == n == len(text.encode().decode())
        assert world.filler(rng(1), 200, kind) != world.filler(rng(2), 200, kind)
    assert len(world.HELD_OUT_FILLER) == 2 and not set(world.HELD_OUT_FILLER) & set(world.FILLER_KINDS)
    for kind in world.HELD_OUT_FILLER:
        with pytest.raises(ValueError, match="no filler kind"):
            world.filler(rng(), 10, kind)
        assert len(world.filler(rng(), 99, kind, held_out=True)) == 99
    training = "".join(world.filler(rng(i), 300) for i in range(200)) + "\n".join(world.corpus(rng(), 2000))
    assert "</section>" not in training and "lighthouse" not in training and "horizon" not in training


def test_phrasings_and_chat():
    tasks = {*world.IMAGE_TASKS, *world.VIDEO_TASKS, *world.TEXT_TASKS}
    assert set(world.PHRASINGS) == tasks and all(len(set(p)) >= 6 for p in world.PHRASINGS.values())
    turns = [q for i in range(200) for q in world.chat_sample(rng(i))]
    assert all(q.task == "chat" and q.question and q.answer for q in turns)
    assert {q.answer for q in turns} >= {"Goodbye!", "You are welcome."}
