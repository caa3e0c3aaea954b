"""Animations are videos with the durations their frames carry."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fluvial.adapters.errors import MediaError, OutOfMemoryError
from fluvial.encoders.image import read_image
from fluvial.encoders.video import open_video, sample
from tests.media.media_files import animation, corners, encoded, four_colours, grey, number

KINDS = ["gif", "webp", "png", "avif"]
DURATIONS = [100, 50, 200, 1000, 400]
STARTS = [0.0, 0.1, 0.15, 0.35, 1.35]


@pytest.mark.parametrize("kind", KINDS)
def test_frames_times_and_sampling(tmp_path, kind):
    data = animation(kind, [grey(5 * i) for i in range(5)], DURATIONS)
    path = tmp_path / "no_telling_name"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        with open_video(source) as video:
            frames = list(video)
            assert [frame.t for frame in frames] == pytest.approx(STARTS)
            assert [number(frame.rgb) for frame in frames] == [0, 5, 10, 15, 20]
            assert [frame.index for frame in frames] == list(range(5))
            assert (video.backend, video.width, video.height) == ("pillow", 64, 48)
            report = video.report
            assert (report.decoded, report.broken, report.truncated) == (5, 0, False)
            assert report.seconds == pytest.approx(1.75)
            assert [f.index for f in sample(video, fps=5)] == [0, 3, 4]
            # In the middle of three parts of 1.75 s: 0.29 -> frame 2, 0.875 and 1.46 -> frames 3 and 4.
            assert [f.index for f in sample(video, count=3)] == [2, 3, 4]
            assert [f.index for f in sample(video, count=5)] == list(range(5))
            assert report.decoded == 5


@pytest.mark.parametrize("kind", KINDS)
def test_transparent_frames_are_on_white(kind):
    clear = np.zeros((16, 16, 4), np.uint8)
    half = clear.copy()
    half[:, 8:] = 10, 20, 30, 255
    data = animation(kind, [half, clear[:, ::-1], half[:, ::-1]], [100, 100, 100], disposal=2 if kind == "gif" else 1)
    with open_video(data) as video:
        first = next(iter(video)).rgb
    assert (first[:, 1] >= 250).all() and np.abs(first[8, 12].astype(int) - (10, 20, 30)).max() <= 8


def test_frames_without_a_duration_last_a_tenth():
    data = animation("gif", [grey(i * 5) for i in range(4)], [0, 0, 10, 0])
    with open_video(data) as video:
        assert [frame.t for frame in video] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_the_fallback_picture_of_a_png_is_no_frame():
    data = animation("png", [four_colours(), grey(5), grey(10)], [100, 200], default_image=True)
    with open_video(data) as video:
        assert [(number(f.rgb), f.index, f.t) for f in video] == [(5, 0, 0.0), (10, 1, 0.1)]
        assert video.frames == 2
    assert corners(read_image(data).rgb) == "RGBW"


@pytest.mark.parametrize("kind", ["gif", "png"])
def test_truncated_animation_gives_what_is_there(kind):
    noise = np.random.default_rng(0).integers(0, 256, (10, 48, 64, 3), dtype=np.uint8)
    data = animation(kind, list(noise), [100] * 10)
    with open_video(data[: int(len(data) * 0.65)]) as video:
        frames = list(video)
        assert 5 <= len(frames) <= 7
        assert video.report.truncated and "truncated" in video.report.message()
        assert len(list(sample(video, count=3))) == 3
    if kind == "png":
        assert (frames[4].rgb == noise[4]).all()


@pytest.mark.parametrize("kind", ["webp", "avif"])
def test_truncated_animation_that_pillow_cannot_open(kind):
    data = animation(kind, [grey(i) for i in range(5)], DURATIONS)
    with pytest.raises(MediaError, match=r"truncated.*bytes"):
        open_video(data[: int(len(data) * 0.65)])


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp"])
def test_a_still_image_is_one_frame(kind):
    with open_video(encoded(four_colours(), kind)) as video:
        frames = list(video)
        assert [(corners(f.rgb), f.t) for f in frames] == [("RGBW", 0.0)]
        assert [f.index for f in sample(video, count=8)] == [0]


def test_orientation_cap_and_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = animation("webp", [four_colours()] * 2 + [grey(3)], [100] * 3, exif=exif)
    with open_video(data, max_pixels=24 * 32) as video:
        assert (video.width, video.height) == (24, 32)
        frame = next(iter(video))
        assert corners(frame.rgb) == "BRWG" and frame.rgb.shape == (32, 24, 3)
    huge = bytearray(animation("gif", [grey(0), grey(9)], [100, 100]))
    huge[6:10] = b"\xff\xff\xff\xff"
    with pytest.raises(OutOfMemoryError, match="65535 x 65535"):
        open_video(bytes(huge))
