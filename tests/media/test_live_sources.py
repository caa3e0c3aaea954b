"""Sources to watch: what each name opens, what a camera does when pictures stay away, what is broken is counted."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluvial.adapters.errors import MediaError, UsageError
from fluvial.encoders import live_sources
from fluvial.encoders.camera import FAILED, Camera
from fluvial.encoders.frame import Frame, Gap
from fluvial.encoders.live_sources import open_source
from fluvial.engine.session import Session
from tests.engine.tiny import picture, tiny
from tests.media.media_files import cut, grey, index_first, write_video


class Clock:
    """Every look at it takes a tick."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 100.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


class Capture:
    """Plays pictures (None: a failed read; a number: the clock jumps), then fails for ever."""

    def __init__(self, clock: Clock, script: list) -> None:
        self.clock, self.script, self.released = clock, list(script), False

    def read(self):
        step = self.script.pop(0) if self.script else None
        while isinstance(step, float):
            self.clock.now += step
            step = self.script.pop(0) if self.script else None
        return step is not None, step

    def release(self) -> None:
        self.released = True


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("fluvial.encoders.camera.BACK_OFF", (0.0, 0.0))


def watched(scripts: list[list | None], tick: float = 0.25, **options) -> tuple[list, Camera]:
    """What a camera gives that is played these scripts, one for each connection (None: it does not connect)."""
    clock = Clock(tick)
    connections = [None if script is None else Capture(clock, script) for script in scripts]
    left = list(connections)
    camera = Camera(0, connect=lambda _: left.pop(0) if left else None, clock=clock, **options)
    seen = []
    with pytest.raises(MediaError, match="is gone"):
        for thing in camera:
            seen.append(thing)
    assert all(capture is None or capture.released for capture in connections)
    return seen, camera


def test_a_camera_that_vanishes_and_returns_leaves_a_gap():
    bgr = np.zeros((4, 6, 3), np.uint8)
    bgr[..., 0] = 200
    seen, camera = watched([[bgr, bgr], None, None, [bgr]] + [None] * 20 + [[bgr]], patience=30.0)
    kinds = [type(thing).__name__ for thing in seen]
    assert kinds == ["Frame", "Frame", "Frame", "Gap", "Frame"] and camera.gaps == 1
    assert seen[0].rgb[0, 0].tolist() == [0, 0, 200]  # blue, as RGB
    assert seen[3].seconds > 2 and "no picture" in seen[3].text
    times = [thing.t for thing in seen]
    assert times == sorted(times) and [thing.index for thing in seen if isinstance(thing, Frame)] == [0, 1, 2, 3]


def test_a_clock_that_slept_is_a_gap_and_broken_pictures_are_skipped():
    bgr = np.zeros((4, 6, 3), np.uint8)
    seen, camera = watched([[bgr, None, np.zeros((4, 6), np.uint8), bgr, 3600.0, bgr]], patience=5.0)
    assert [type(thing) for thing in seen] == [Frame, Frame, Gap, Frame]
    assert seen[2].seconds > 3600 and camera.broken == 2 + FAILED


def test_a_fast_camera_is_thinned():
    bgr = np.zeros((4, 6, 3), np.uint8)
    seen, _ = watched([[bgr] * 1000], tick=0.005, fps=2.0, patience=0.0)  # 200 pictures a second for 5 s
    assert 9 <= len(seen) <= 11 and np.diff([frame.t for frame in seen]).min() > 0.4


def test_a_camera_that_is_not_there():
    with pytest.raises(MediaError, match="not there"):
        list(Camera(3, connect=lambda _: None))


def test_closing_ends_a_camera():
    bgr = np.zeros((4, 6, 3), np.uint8)
    camera = Camera(0, connect=lambda _: Capture(Clock(0.1), [bgr] * 100))
    for i, _ in enumerate(camera):
        if i == 3:
            camera.close()
    assert camera.frames == 4


def test_each_name_opens_its_source(tmp_path: Path, monkeypatch):
    write_video(tmp_path / "clip.mp4", [grey(i) for i in range(20)])
    assert [round(frame.t, 2) for frame in open_source(tmp_path / "clip.mp4", fps=5.0)][:3] == [0.0, 0.2, 0.4]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in (10, 9, 1):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / f"p{i}.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "p11.png").write_bytes((folder / "p10.png").read_bytes()[:40])
    pictures = open_source(folder, fps=2.0)
    assert [(frame.t, int(frame.rgb[0, 0, 0])) for frame in pictures] == [(0.0, 1), (0.5, 9), (1.0, 10)]
    assert pictures.warning == "1 of 4 pictures could not be read."
    pattern = list(open_source("test:3"))
    assert len(pattern) == 6 and any((a.rgb != b.rgb).any() for a, b in itertools.pairwise(pattern))
    monkeypatch.setattr(live_sources.sys, "stdin", io.StringIO("one\n\ntwo\n"))
    assert list(open_source("-")) == ["one", "two"]
    assert open_source("camera:2").where == 2 and open_source(1).where == 1
    assert open_source("rtsp://camera.example/1", network=True).where == "rtsp://camera.example/1"


def test_what_cannot_be_opened(tmp_path: Path):
    for where, error in (
        (tmp_path / "none.mp4", MediaError),
        (tmp_path, MediaError),
        ("rtsp://camera.example/1", UsageError),
        ("file:///etc/passwd", UsageError),
    ):
        with pytest.raises(error):
            open_source(where)
    with pytest.raises(UsageError, match="fps"):
        open_source("test", fps=0.0)


def test_a_truncated_file_gives_what_it_has_and_says_so(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    cut(index_first(write_video(tmp_path / "half.mp4", list(noise))), 0.5)
    source = open_source(tmp_path / "half.mp4", fps=30.0)
    assert 0 < len(list(source)) < 40 and "truncated" in source.warning.lower()


@pytest.mark.parametrize("t", [172_800.0, 1e9])
def test_late_times_and_changing_sizes_are_seen(t: float):
    session = Session(tiny("delta"))
    for i, shape in enumerate(((96, 128), (96, 128), (96, 128), (64, 64), (200, 50))):
        session.push(Frame(picture(i, *shape), t=t + i / 2, index=i))
    answer = list(session.ask("What is there?", max_tokens=3))[-1]
    assert answer.usage.media_tokens > 0
