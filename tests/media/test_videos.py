"""Video files through both decoders: right frames at right times, told truncation, bounded memory."""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluvial.adapters.errors import FluvialError, MediaError, OutOfMemoryError, UsageError
from fluvial.encoders.containers import layout_of
from fluvial.encoders.frame import Frame
from fluvial.encoders.source import sniff
from fluvial.encoders.video import open_video, sample
from tests.media.media_files import (
    BACKENDS,
    HAS_PYAV,
    boxes,
    corners,
    cut,
    encoded,
    four_colours,
    grey,
    index_first,
    number,
    rotate,
    trim,
    write_mkv,
    write_video,
)

VFR = [0.0, 0.1, 0.2, 0.3, 1.0, 1.04, 1.08, 3.0, 3.5, 5.5]
CONTAINERS = [("mp4", "mp4v"), ("mkv", "mp4v"), ("avi", "MJPG"), ("mov", "mp4v"), ("ts", "mp4v")]
both = pytest.mark.parametrize("backend", BACKENDS)


def clip(path: Path, frames: int = 20, fps: float = 10, codec: str = "mp4v") -> Path:
    return write_video(path, [grey(i) for i in range(frames)], fps, codec)


def noise(path: Path, frames: int = 40) -> Path:
    """A clip that does not compress, so that a part of the file is a part of the time."""
    random = np.random.default_rng(0)
    return write_video(path, [random.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(frames)])


@both
@pytest.mark.parametrize(("suffix", "codec"), CONTAINERS)
def test_frames_come_in_order_with_their_times(tmp_path, backend, suffix, codec):
    path = clip(tmp_path / f"clip.{suffix}", codec=codec)
    with open_video(path, backend=backend) as video:
        frames = list(video)
        assert (video.backend, video.width, video.height) == (backend, 64, 48)
        assert video.fps == pytest.approx(10, rel=0.01)
        assert video.duration == pytest.approx(2.0, abs=0.11)
    assert all(isinstance(frame, Frame) and frame.rgb.shape == (48, 64, 3) for frame in frames)
    assert [number(frame.rgb) for frame in frames] == list(range(20))
    assert [frame.index for frame in frames] == list(range(20))
    assert [frame.t for frame in frames] == pytest.approx([i / 10 for i in range(20)], abs=1e-3)
    report = video.report
    assert (report.decoded, report.broken, report.truncated, report.finished) == (20, 0, False, True)
    assert report.expected in (20, None) and report.seconds == pytest.approx(2.0, abs=0.05)
    assert "20 frames decoded" in report.message() and "truncated" not in report.message()


@both
def test_colours_are_rgb_and_the_first_iteration_is_not_the_last(tmp_path, backend):
    path = write_video(tmp_path / "clip.mp4", [four_colours()] * 3)
    with open_video(str(path), backend=backend) as video:
        for _ in range(2):
            assert [corners(frame.rgb) for frame in video] == ["RGBW"] * 3
            assert video.report.decoded == 3


@both
def test_bytes_and_their_temporary_file(tmp_path, backend, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    data = clip(tmp_path / "clip.mp4").read_bytes()
    with open_video(data, backend=backend) as video:
        assert len(list(video)) == 20
        assert list((tmp_path / "tmp").iterdir())
    assert not list((tmp_path / "tmp").iterdir())
    with pytest.raises(MediaError):
        open_video(data[:40], backend=backend)
    assert not list((tmp_path / "tmp").iterdir())


@both
@pytest.mark.parametrize("start", [0, 5])
def test_variable_frame_rate(tmp_path, backend, start):
    path = write_mkv(tmp_path / "vfr.mkv", [start + t for t in VFR], claimed_fps=90)
    with open_video(path, backend=backend) as video:
        frames = list(video)
        assert [frame.t for frame in frames] == pytest.approx(VFR, abs=1e-6)  # the start is 0, wherever the file begins
        assert [number(frame.rgb) for frame in frames] == list(range(10))
        # By its header this file has 500 frames: not a reason to cry, nor to count on.
        assert video.frames is None and video.report.expected is None
        assert not video.report.truncated and video.report.decoded == 10
        picked = [(number(f.rgb), f.index, round(f.t, 3)) for f in sample(video, fps=1)]
        assert picked == [(0, 0, 0.0), (4, 4, 1.0), (7, 7, 3.0), (9, 9, 5.5)]
        # Four equal parts; in the middle of each is on the screen: 0.69 -> frame 3, 2.07 -> 6, 3.44 -> 7, 4.82 -> 8.
        assert [(number(f.rgb), f.index) for f in sample(video, count=4)] == [(3, 3), (6, 6), (7, 7), (8, 8)]
        assert [f.index for f in sample(video, count=10)] == list(range(10))
        assert [f.index for f in sample(video, count=99)] == list(range(10))
        assert video.report.finished


@pytest.mark.skipif(not HAS_PYAV, reason="needs the [video] extra")
@both
def test_variable_frame_rate_mp4_with_reordered_frames(tmp_path, backend):
    av = pytest.importorskip("av")
    from fractions import Fraction

    if "libx264" not in av.codecs_available:
        pytest.skip("this PyAV has no H.264 encoder")
    path = tmp_path / "vfr.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "2", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 1
        for index, t in enumerate(VFR):
            frame = av.VideoFrame.from_ndarray(grey(index), format="rgb24")
            frame.pts, frame.time_base = round(t * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with open_video(path, backend=backend) as video:
        frames = list(video)
        assert [frame.t for frame in frames] == pytest.approx(VFR, abs=1e-3)
        assert [number(frame.rgb) for frame in frames] == list(range(10))
        assert video.frames == 10 and not video.report.truncated


@both
def test_missing_timestamps_go_on_by_the_frame_rate(tmp_path, backend):
    # MPEG-4 elementary streams carry none that FFmpeg uses; an MPEG-1 sequence header starts the file.
    av = pytest.importorskip("av")
    path = tmp_path / "raw.h264"
    if "libx264" not in av.codecs_available:
        pytest.skip("this PyAV has no H.264 encoder")
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey(index), format="rgb24")))
        container.mux(stream.encode())
    with open_video(path, backend=backend) as video:
        assert [(number(f.rgb), round(f.t, 3)) for f in video] == [(i, round(i / 25, 3)) for i in range(10)]


@both
@pytest.mark.parametrize(("degrees", "expected"), [(0, "RGBW"), (90, "BRWG"), (180, "WBGR"), (270, "GWRB")])
def test_rotation_is_applied(tmp_path, backend, degrees, expected):
    path = rotate(write_video(tmp_path / "phone.mp4", [four_colours()] * 3), degrees)
    with open_video(path, backend=backend) as video:
        frame = next(iter(video))
        assert corners(frame.rgb) == expected
        shape = (48, 64) if degrees % 180 == 0 else (64, 48)
        assert (frame.height, frame.width) == (video.height, video.width) == shape


@both
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_truncated_file_is_said_to_be(tmp_path, backend, suffix):
    path = noise(tmp_path / f"clip.{suffix}")
    if suffix == "mp4":
        index_first(path)
    size = path.stat().st_size
    with open_video(cut(path, 0.6), backend=backend) as video:
        frames = list(video)
        report = video.report
        assert 6 <= len(frames) <= 30 and report.decoded == len(frames)
        assert report.truncated and report.finished and "truncated" in report.message()
        assert report.seconds == pytest.approx(len(frames) / 10, abs=0.11)
        assert report.expected_seconds == pytest.approx(4, abs=0.1) or suffix == "avi"
        if suffix == "mp4":
            assert report.expected == 40 and f"{len(frames)} of 40 frames" in report.message()
        # What is left is still sampled evenly, over the time that is left.
        times = [frame.t for frame in sample(video, count=4)]
        assert np.diff(times) == pytest.approx([frames[-1].t / 4] * 3, abs=0.11)
        ticks = np.arange(0, frames[-1].t + 1e-3, 0.5)
        assert [f.t for f in sample(video, fps=2)] == pytest.approx(ticks, abs=1e-3)
    layout = layout_of(path, sniff(path.read_bytes()))
    assert layout.whole is False and layout.missing == pytest.approx(0.4 * size, abs=2)


@both
def test_a_file_of_the_right_length_with_zeros_at_its_end(tmp_path, backend):
    path = index_first(noise(tmp_path / "clip.mp4"))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))  # a download that reserved its space
    with open_video(path, backend=backend) as video:
        assert 4 <= len(list(video)) <= 30
        assert video.report.truncated and "of 40 frames" in video.report.message()


@both
def test_a_recording_that_does_not_say_its_size(tmp_path, backend):
    path = write_mkv(tmp_path / "live.mkv", [i / 10 for i in range(40)], claimed_fps=10, picture=lambda i: grey(i % 30))
    data = path.read_bytes()
    size = data.index(bytes.fromhex("18538067")) + 4
    path.write_bytes(data[:size] + b"\x01" + b"\xff" * 7 + data[size + 8 :])
    with open_video(path, backend=backend) as video:
        assert len(list(video)) == 40 and not video.report.truncated
    with open_video(cut(path, 0.5), backend=backend) as video:  # only the duration in its header tells
        assert not video.report.truncated
        assert 15 <= len(list(video)) <= 25 and video.report.truncated


@both
def test_a_broken_packet_is_skipped_and_counted(tmp_path, backend):
    path = write_mkv(tmp_path / "clip.mkv", [i / 10 for i in range(20)], claimed_fps=10)
    data = path.read_bytes()
    start = data.index(encoded(grey(7), "jpeg", quality=95))
    path.write_bytes(data[:start] + bytes(200) + data[start + 200 :])
    with open_video(path, backend=backend) as video:
        assert [number(frame.rgb) for frame in video] == [i for i in range(20) if i != 7]
        assert (video.report.decoded, video.report.broken, video.report.truncated) == (19, 1, False)
        assert "1 broken" in video.report.message()
        assert [f.index for f in sample(video, count=5)] == sorted({f.index for f in sample(video, count=5)})


@both
def test_a_trimmed_file_is_not_a_truncated_one(tmp_path, backend):
    path = trim(index_first(clip(tmp_path / "phone.mp4")), 1.0)
    with open_video(path, backend=backend) as video:
        assert [number(frame.rgb) for frame in video] == list(range(10))
        assert not video.report.truncated and not video.report.broken
        assert video.report.message().endswith("10 frames decoded (1.0 s).")
        assert [f.index for f in sample(video, count=2)] == [2, 7]


@both
def test_one_frame(tmp_path, backend):
    path = clip(tmp_path / "one.mp4", frames=1)
    with open_video(path, backend=backend) as video:
        assert [(f.t, f.index) for f in video] == [(0.0, 0)]
        assert "1 frame decoded" in video.report.message() and not video.report.truncated
        for how in ({"fps": 1}, {"fps": 0.01}, {"count": 1}, {"count": 8}, {"fps": 5, "max_frames": 1}, {}):
            assert [f.index for f in sample(video, **how)] == [0]


@both
def test_what_is_no_video(tmp_path, backend):
    def told(source, *words):
        with pytest.raises(MediaError) as caught, open_video(source, backend=backend) as video:
            list(video)
        assert caught.value.what and caught.value.why and caught.value.exit_code == 4
        for word in words:
            assert word in str(caught.value)

    def file(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    told(tmp_path / "none.mp4", "none.mp4", "no such file")
    told(tmp_path, "is a directory")
    told(file("empty.mp4", b""), "empty")
    told(file("text.mp4", b"This is no video.\n" * 100), "is text", "MP4")
    told(file("playlist.mp4", b"#EXTM3U\n#EXTINF:10,\n/etc/passwd\n"), "is text")
    told(file("concat.mp4", b"ffconcat version 1.0\nfile '/etc/passwd'\n"), "is text")
    told(file("junk.mp4", bytes(range(256)) * 20), "not known")
    told(file("junk2.mp4", struct.pack(">I", 24) + b"ftypisom" + bytes(range(12)) * 100))
    told("https://example.org/clip.mp4", "local files")
    told("rtsp://camera", "local files")
    no_index = cut(noise(tmp_path / "recording.mp4"), 0.8)
    told(no_index, "index", "never finished")
    told(cut(clip(tmp_path / "half_index.mp4"), 0.9), "index", "never finished")
    whole = index_first(noise(tmp_path / "whole.mp4")).read_bytes()
    media = next(start for name, start, _ in boxes(whole) if name == b"mdat")
    told(file("short.mp4", whole[: media + 12]), "truncated", f"{len(whole) - media - 12:,} bytes")
    os.mkfifo(tmp_path / "pipe.mp4")
    told(tmp_path / "pipe.mp4", "a pipe or a device")


@both
def test_nothing_is_opened_through_a_name(tmp_path, backend, monkeypatch):
    # OpenCV reads "0" as a camera and "a_%d.jpg" as a sequence of images; both are names of files here.
    monkeypatch.chdir(tmp_path)
    for name in ("0", "a_%d.jpg", "-y.mp4", "concat:x.mp4", "Fünf 空.mp4"):
        with pytest.raises(MediaError, match="no such file"):
            open_video(name, backend=backend)
        clip(tmp_path / "clip.mp4", frames=3).rename(tmp_path / name)
        with open_video(name, backend=backend) as video:
            assert len(list(video)) == 3


def huge_mkv(path: Path, width: int, height: int) -> Path:
    write_mkv(path, [0.0, 0.1])
    data = path.read_bytes()
    for name, old, new in (("B0", 64, width), ("BA", 48, height)):
        element = bytes.fromhex(name) + struct.pack(">Q", 8 | 1 << 56)
        data = data.replace(element + struct.pack(">Q", old), element + struct.pack(">Q", new))
    jpeg = encoded(grey(0), "jpeg", quality=95)
    frame_size = jpeg.index(b"\xff\xc0") + 5
    wide = jpeg[:frame_size] + struct.pack(">HH", height, width) + jpeg[frame_size + 4 :]
    path.write_bytes(data.replace(jpeg, wide))
    return path


@both
def test_frames_above_the_cap_are_refused(tmp_path, backend):
    with (
        pytest.raises((OutOfMemoryError, MediaError)) as caught,
        open_video(huge_mkv(tmp_path / "huge.mkv", 16_000, 16_000), backend=backend) as video,
    ):
        list(video)
    if isinstance(caught.value, OutOfMemoryError):
        assert "16000 x 16000" in str(caught.value)


@both
def test_max_pixels_scales_down(tmp_path, backend):
    path = rotate(write_video(tmp_path / "clip.mp4", [four_colours(640, 480)] * 3), 90)
    with open_video(path, backend=backend, max_pixels=64 * 48) as video:
        frames = list(video)
        assert (video.width, video.height) == (48, 64)
        assert {frame.rgb.shape for frame in frames} == {(64, 48, 3)}
        assert {corners(frame.rgb) for frame in frames} == {"BRWG"}


@both
def test_frames_are_streamed(tmp_path, backend):
    path = clip(tmp_path / "clip.mp4", frames=30)
    with open_video(path, backend=backend) as video:
        for how in ({}, {"fps": 5}, {"count": 10}):
            seen = []
            for frame in sample(video, **how):
                seen.append(weakref.ref(frame.rgb))
                assert sum(reference() is not None for reference in seen) <= 2
            assert len(seen) >= 10


@both
def test_only_wanted_frames_are_converted(tmp_path, backend, monkeypatch):
    path = clip(tmp_path / "clip.mp4", frames=30)
    with open_video(path, backend=backend) as video:
        kind = type(next(iter(video._open)))
        converted, convert = [], kind._convert
        monkeypatch.setattr(kind, "_convert", lambda *args: converted.append(1) or convert(*args))
        assert len(list(sample(video, fps=1))) == 3
        assert len(converted) == 3


@both
def test_close_is_prompt_and_final(tmp_path, backend):
    path = clip(tmp_path / "clip.mp4", frames=30)
    video = open_video(path, backend=backend)
    frames = video.pending()
    step = next(frames)
    descriptors = Path("/proc/self/fd")
    if descriptors.exists():
        assert str(path) in {os.path.realpath(fd) for fd in descriptors.iterdir()}
    started = time.monotonic()
    video.close()
    video.close()
    assert time.monotonic() - started < 5
    if descriptors.exists():
        assert str(path) not in {os.path.realpath(fd) for fd in descriptors.iterdir()}
    for use in (lambda: next(frames), lambda: next(iter(video)), step.frame):
        with pytest.raises(UsageError, match="closed"):
            use()
    assert not video.report.finished and "not read to the end" in video.report.message()


@both
def test_close_from_another_thread(tmp_path, backend):
    path = clip(tmp_path / "clip.mp4", frames=30)
    video = open_video(path, backend=backend)
    seen = threading.Event()
    ended = []

    def read():
        try:
            while True:
                for _ in video:
                    seen.set()
        except UsageError:
            ended.append(True)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert seen.wait(10)
    video.close()
    thread.join(10)
    assert ended == [True]


def test_backends(tmp_path, monkeypatch):
    path = clip(tmp_path / "clip.mp4", frames=2)
    with open_video(path) as video:
        assert video.backend == ("pyav" if HAS_PYAV else "opencv")
    with pytest.raises(UsageError, match="opencv"):
        open_video(path, backend="ffmpeg")  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        open_video(path, max_pixels=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with open_video(path) as video:
        assert video.backend == "opencv"
    with pytest.raises(UsageError, match=r"fluvial\[video\]"):
        open_video(path, backend="pyav")
    monkeypatch.setitem(sys.modules, "cv2", None)  # as where libGL.so.1 is missing
    with pytest.raises(MediaError, match=r"OpenCV cannot be loaded.*libgl1"):
        open_video(path)


@pytest.mark.skipif(not HAS_PYAV, reason="needs the [video] extra")
def test_sound_without_pictures(tmp_path):
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 48000
        for _ in range(10):
            container.mux(stream.encode(silence))
        container.mux(stream.encode())
    for backend in ("opencv", "pyav"):
        with pytest.raises(MediaError), open_video(path, backend=backend) as video:
            list(video)


@pytest.fixture(scope="module")
def small_clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    mp4 = index_first(write_video(folder / "a.mp4", [grey(i, 32, 32) for i in range(4)]))
    return [mp4.read_bytes(), write_mkv(folder / "b.mkv", [0, 0.1, 0.5]).read_bytes()]


@both
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 1), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=5), st.floats(0.1, 1))
def test_hostile_bytes_give_frames_or_a_told_error(small_clips, backend, which, changes, keep):
    data = bytearray(small_clips[which])
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    try:
        with open_video(bytes(data[: int(len(data) * keep)]), backend=backend, max_pixels=10_000) as video:
            times = []
            for frame in sample(video, count=4):
                assert frame.height * frame.width <= 10_000
                times.append(frame.t)
            assert times == sorted(times) and video.report.message()
    except FluvialError as error:
        assert error.what and error.exit_code in (4, 5)
