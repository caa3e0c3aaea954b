"""The frames that Qwen's towers look at, and in how many pixels, against the published video processor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fluvial.adapters.errors import IntegrityError
from fluvial.encoders.frame import Extent, Frame
from fluvial.encoders.qwen_frames import Watching
from fluvial.encoders.qwen_pixels import Limits, fitted
from fluvial.encoders.sampling import at_times
from fluvial.encoders.video import open_video
from fluvial.engine.loading import load_parts
from fluvial.engine.media import Video
from fluvial.engine.session import Session
from tests.media.media_files import grey, number, write_video
from tests.media.test_sampling import Film, indices
from tests.parity.test_qwen3_5_session import made  # noqa: F401  (a fixture: a small model with its reference)

RATES = [1.0, 5.0, 10.0, 12.5, 15.0, 23.976, 24.0, 25.0, 30000 / 1001, 30.0, 50.0, 60000 / 1001, 60.0, 120.0]


def reference(total: int, rate: float, watching: Watching, **wishes: Any) -> list[int]:
    """What the published code chooses; where it was asked for more than there are, it repeats some, and here each comes
    once."""
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    processor = SimpleNamespace(fps=watching.fps, min_frames=watching.least, max_frames=watching.most)
    metadata = SimpleNamespace(total_num_frames=total, fps=rate)
    chosen = Qwen3VLVideoProcessor.sample_frames(processor, metadata, **wishes)
    assert len(set(chosen)) == len(chosen) or (wishes.get("fps") or watching.fps) is None
    return sorted({int(index) for index in chosen})


watchings = st.builds(
    Watching,
    fps=st.one_of(st.none(), st.sampled_from([0.25, 0.5, 1.0, 2.0, 3.0, 4.5, 30.0])),
    least=st.integers(1, 8),
    most=st.integers(8, 900),
)


@given(st.integers(1, 40_000), st.sampled_from(RATES), watchings)
@example(29, 25.0, Watching(fps=100.0))  # 115.99999999999999 frames
def test_the_choice_is_the_published_one(total: int, rate: float, watching: Watching):
    assert watching.indices(total, rate) == reference(total, rate, watching)
    assert watching.indices(total, rate, fps=1.5) == reference(total, rate, watching, fps=1.5)


@given(st.integers(1, 3000), st.integers(1, 60))
def test_a_number_of_frames_is_the_published_choice(total: int, count: int):
    wanted = reference(total, 30.0, Watching(None), num_frames=count)
    assert Watching(count=count).indices(total, 30.0) == Watching().indices(total, 30.0, count=count) == wanted
    assert len(Watching().indices(total, 30.0, most=count)) <= count


@given(st.integers(1, 900), st.sampled_from(RATES), watchings, st.sampled_from([1e-9, 1e-6, 1e-3]))
def test_a_constant_rate_gives_those_frames_by_time(total: int, rate: float, watching: Watching, tick: float):
    """Containers round their timestamps, Matroska to milliseconds."""
    film = Film([round(i / rate / tick) * tick for i in range(total)], total / rate, keeps=True)
    film.fps = rate
    viewing = watching.viewing(film, fps=None, count=None, most=None)
    assert indices(at_times(film, viewing.times)) == reference(total, rate, watching)


@pytest.mark.parametrize("backend", ["opencv", "pyav"])
@pytest.mark.parametrize(("total", "rate"), [(45, 15.0), (60, 24.0), (61, 30000 / 1001), (7, 10.0)])
def test_a_file_of_constant_rate(tmp_path: Path, backend: Any, total: int, rate: float):
    if backend == "pyav":
        pytest.importorskip("av")
    path = write_video(tmp_path / "a.mp4", [grey(i % 30) for i in range(total)], fps=rate)
    for watching in (Watching(), Watching(fps=4.0), Watching(most=6), Watching(count=5)):
        with open_video(path, backend=backend) as reader:
            viewing = watching.viewing(reader, fps=None, count=None, most=None)
            seen = list(at_times(reader, viewing.times))
        plain, wish = (Watching(None), {"num_frames": 5}) if watching.count else (watching, {})
        assert [frame.index for frame in seen] == reference(total, rate, plain, **wish)
        assert [number(frame.rgb) for frame in seen] == [frame.index % 30 for frame in seen]


def test_a_variable_rate_is_looked_at_by_the_clock():
    """Ten seconds of slides, then ten of motion: by number nearly all frames would be of the motion."""
    times = [*(float(i) for i in range(10)), *(10 + i / 30 for i in range(300))]
    film = Film(times, 20.0, keeps=True)
    film.fps = 15.5
    viewing = Watching(fps=1.0).viewing(film, fps=None, count=None, most=None)
    seen = [frame.t for frame in at_times(film, viewing.times)]
    assert len(seen) == 20 and sum(t < 10 for t in seen) in (9, 10, 11)
    film.extent = lambda: Extent(20.0, None)  # frames not counted: by the header's rate
    assert Watching(fps=1.0).viewing(film, fps=None, count=None, most=None).times[-1] == pytest.approx(20, abs=0.1)


# the processor's files


WHERE: dict[str, Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]] = {
    "new": lambda video: ("processor_config.json", {"video_processor": video}),
    "old": lambda video: ("video_preprocessor_config.json", video),
}


@pytest.mark.parametrize("where", WHERE)
def test_the_options_of_either_file(made, tmp_path: Path, where: str):  # noqa: F811
    folder = made[1].folder

    def watching(video: dict[str, Any]) -> Watching:
        for path in folder.glob("*"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        name, said = WHERE[where](video)
        (tmp_path / name).write_text(json.dumps(said))
        found: Watching = load_parts(tmp_path).tower.config.watching
        return found

    assert watching({}) == Watching() == Watching(2.0, None, 4, 768)
    assert watching({"fps": 0.5, "min_frames": 2, "max_frames": 30}) == Watching(0.5, None, 2, 30)
    assert watching({"fps": None, "num_frames": 16}) == Watching(None, 16)
    for wrong in ({"fps": -1}, {"fps": "2"}, {"max_frames": 1.5}, {"num_frames": True}, {"max_video_tokens": -3}):
        with pytest.raises(IntegrityError, match=next(iter(wrong))):
            watching(wrong)


def test_a_session_looks_at_the_published_frames(made, tmp_path: Path):  # noqa: F811
    path = write_video(tmp_path / "a.mp4", [grey(i % 30, 96, 64) for i in range(90)], fps=30)
    for video, watching in {
        Video(path): Watching(),
        Video(path, fps=4): Watching(4.0),
        Video(path, max_frames=3): Watching(most=3, least=3),
    }.items():
        assert Session(made[1]).push(video).frames == len(reference(90, 30.0, watching))
    assert Session(made[1]).push(Video(path, frames=7)).frames == 7


# pixels of a frame


@pytest.mark.parametrize("frames", [2, 3, 8, 40, 768])
@pytest.mark.parametrize("shape", [(2160, 3840), (480, 640), (64, 96), (3000, 400)])
def test_the_cap_of_a_frame_is_the_published_one(shape: tuple[int, int], frames: int):
    """The published processor with `cap_pixels_per_frame`, resizing pictures that are not made."""
    from transformers.image_utils import SizeDict
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    limits, processor = Limits(capped=True), Qwen3VLVideoProcessor.__new__(Qwen3VLVideoProcessor)
    size = SizeDict(shortest_edge=limits.video[0], longest_edge=limits.video[1])
    pictures = torch.empty(1, frames, 3, *shape, dtype=torch.uint8, device="meta")
    with pytest.MonkeyPatch.context() as patch:
        resized: list[Any] = []
        base = Qwen3VLVideoProcessor.__mro__[1]
        patch.setattr(base, "resize", lambda self, image, size, resample: resized.append(size), raising=False)
        processor.resize(pictures, size, None, factor=32, temporal_factor=2, cap_pixels_per_frame=True)
    wanted = (resized[0].height, resized[0].width)
    assert fitted(*shape, 32, limits.of_video(frames, 32), frames) == wanted


@pytest.mark.parametrize("shape", [(2160, 3840), (4320, 7680), (3000, 400)])
def test_live_frames_have_a_budget(made, shape: tuple[int, int]):  # noqa: F811
    """A camera of any size: a pair of frames is at most `max_video_tokens`; a file may spend more on few frames."""
    tower, frames = made[1].tower, [Frame(np.zeros((*shape, 3), np.uint8), t) for t in (0.0, 0.5)]
    tokens = len(tower.layout(frames, video=True)[0].positions[0])
    assert 384 <= tokens <= 768
    assert len(tower.layout(frames[:1], video=True)[0].positions[0]) == tokens  # one that was left alone
    assert len(tower.layout(frames, video=True, total=2)[0].positions[0]) >= tokens
    small = [Frame(np.zeros((480, 640, 3), np.uint8), 0.0)] * 2
    assert len(tower.layout(small, video=True)[0].positions[0]) == 15 * 20, "a small camera is seen as it is"


def test_a_session_with_a_large_camera(made):  # noqa: F811
    session = Session(made[1])
    pushed = [session.push(Frame(np.zeros((1080, 1920, 3), np.uint8), i / 2, i)).tokens for i in range(4)]
    assert pushed[0] == pushed[2] == 0 and 400 < pushed[3] < 800
