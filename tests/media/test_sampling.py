"""The sampler against its definition, on any timestamps, and on the promise of what it holds."""

from __future__ import annotations

import functools
import math
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluvial.adapters.errors import UsageError
from fluvial.encoders.frame import Extent, Frame, FrameSource, Pending
from fluvial.encoders.sampling import sample
from fluvial.encoders.video_backend import Clock

gaps = st.one_of(st.sampled_from([0.0, 1 / 30, 0.04, 0.1, 1.0]), st.floats(0, 3, allow_subnormal=False))
streams = st.lists(gaps, min_size=1, max_size=120).map(lambda g: np.cumsum([0.0, *g[1:]]).tolist())
rates = st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.0, 7.0, 24.0, 30.0, 29.97])
counts = st.integers(1, 20)


def frames_at(times):
    for index, t in enumerate(times):
        yield Frame(np.zeros((1, 1, 3), np.uint8), t, index)


class Film(FrameSource):
    """A source with a known length; like a decoder it can convert a picture only while it is the current one."""

    def __init__(self, times, seconds, *, keeps, counted=True, broken=()):
        self.times, self.seconds, self.keeps, self.counted, self.broken = times, seconds, keeps, counted, broken
        self.converted = 0
        self.ended = False

    def pending(self):
        current = None

        def rgb(index):
            assert self.keeps or index == current, "converted after the decoder went on"
            self.converted += 1
            return None if index in self.broken else np.zeros((1, 1, 3), np.uint8)

        for current, t in enumerate(self.times):
            now = functools.partial(rgb, current)
            yield Pending(t, current, None, now, None if self.keeps else functools.partial(self.hold, now))
        self.ended = True

    @staticmethod
    def hold(convert):
        picture = convert()
        return None if picture is None else lambda: picture

    def extent(self):
        return Extent(self.seconds, len(self.times) if self.counted else None)


def indices(frames):
    return [frame.index for frame in frames]


@given(streams, rates)
def test_fps_is_the_first_frame_at_or_after_each_tick(times, fps):
    expected = []
    for tick in range(math.ceil(times[-1] * fps) + 2):
        at = next((i for i, t in enumerate(times) if t >= tick / fps - 1e-6), None)
        if at is not None and at not in expected:
            expected.append(at)
    assert indices(sample(frames_at(times), fps=fps)) == expected
    film = Film(times, times[-1] + 0.1, keeps=False)
    assert indices(sample(film, fps=fps)) == expected and film.converted == len(expected)


@given(st.integers(1, 200), st.sampled_from([24, 25, 29.97, 30, 60]), st.sampled_from([1, 2, 5, 10]))
def test_fps_on_a_steady_source_is_even(length, source_fps, fps):
    times = [i / source_fps for i in range(length)]
    picked = [frame.t for frame in sample(frames_at(times), fps=fps)]
    assert len(picked) == math.floor(times[-1] * fps + 1e-4) + 1
    assert all(0 <= t - tick / fps + 1e-6 < 1 / source_fps + 2e-6 for tick, t in enumerate(picked))


@given(streams, counts, st.floats(0.01, 5), st.booleans())
def test_count_is_what_is_on_the_screen_in_the_middle_of_each_part(times, count, last, keeps):
    seconds = times[-1] + last
    film = Film(times, seconds, keeps=keeps, counted=False)
    middles = [(part + 0.5) * seconds / count for part in range(count)]
    expected = sorted({max((i for i, t in enumerate(times) if t <= at + 1e-6), default=0) for at in middles})
    assert indices(sample(film, count=count)) == expected
    assert film.ended  # so that the report of a reader is complete
    if keeps:
        assert film.converted == len(expected)


@given(streams, counts)
def test_a_source_of_fewer_frames_gives_them_all(times, count):
    everything = list(range(len(times)))
    for source in (Film(times, times[-1] + 1, keeps=False), frames_at(times)):
        if len(times) <= count:
            assert indices(sample(source, count=count)) == everything
            assert indices(sample(frames_at(times), max_frames=count)) == everything


@settings(max_examples=100)
@given(streams, counts)
def test_count_on_a_stream_of_unknown_length(times, count):
    picked = list(sample(frames_at(times), count=count))
    at = indices(picked)
    assert at == sorted(set(at)) and 1 <= len(at) <= count
    if len(times) <= count:
        return
    # Each middle of a part has a frame that came on the screen at most half a part before the right one.
    end = times[-1] + times[-1] / (len(times) - 1)
    for part in range(count):
        middle = (part + 0.5) * end / count
        shown = max(t for t in times if t <= middle + 1e-6)
        assert any(shown - 0.5 * end / count - 1e-6 <= frame.t <= middle + 1e-6 for frame in picked)


@given(st.integers(1, 600), counts)
def test_count_on_a_steady_stream_of_unknown_length_is_even(length, count):
    times = [i / 30 for i in range(length)]
    picked = [frame.t for frame in sample(frames_at(times), count=count)]
    assert len(picked) == min(count, length)
    if length > count:
        part = length / 30 / count
        middles = [(i + 0.5) * part for i in range(count)]
        assert all(abs(t - middle) <= 0.5 * part + 1 / 30 + 1e-6 for t, middle in zip(picked, middles, strict=True))


@pytest.mark.parametrize("how", [{"count": 5}, {"fps": 10, "max_frames": 5}, {"fps": 2}, {}])
def test_what_is_held(how):
    alive, most = [], 0

    def stream():
        nonlocal most
        for index in range(3000):
            rgb = np.zeros((1, 1, 3), np.uint8)
            alive[:] = [reference for reference in alive if reference() is not None]
            alive.append(weakref.ref(rgb))
            most = max(most, len(alive))
            yield Frame(rgb, index / 30, index)

    for _ in sample(stream(), **how):
        pass
    assert most <= (4 * 5 + 4 if "count" in how or "max_frames" in how else 4)


@given(streams, rates, counts, st.booleans(), st.floats(0.01, 3))
def test_max_frames_bounds_fps_without_cutting_the_end(times, fps, most, known, last):
    seconds = times[-1] + last
    source = Film(times, seconds, keeps=False) if known else frames_at(times)
    picked = list(sample(source, fps=fps, max_frames=most))
    unbounded = indices(sample(frames_at(times), fps=fps))
    assert 1 <= len(picked) <= most
    if (known and seconds * fps <= most) or (not known and len(unbounded) <= most):
        assert indices(picked) == unbounded[:most]
    elif known:
        assert picked[-1].t >= max(t for t in times if t <= (most - 0.5) * seconds / most + 1e-6)


@given(streams, counts)
def test_count_and_max_frames_together_are_the_smaller(times, count):
    def film():
        return Film(times, times[-1] + 1, keeps=False)

    assert indices(sample(film(), count=count, max_frames=7)) == indices(sample(film(), count=min(count, 7)))


def test_a_count_that_lies_does_not_pass_the_bound():
    film = Film([i / 10 for i in range(30)], 3.0, keeps=False)
    film.extent = lambda: Extent(0.3, 3)
    assert indices(sample(film, count=5)) == [0, 1, 2, 3, 4] and film.ended
    assert len(indices(sample(film, fps=10, max_frames=5))) == 5


def test_broken_frames_leave_their_place_to_the_next():
    times = [i / 10 for i in range(30)]
    assert indices(sample(Film(times, 3.0, keeps=False, broken={10}), fps=1)) == [0, 11, 20]
    assert indices(sample(Film(times, 3.0, keeps=False, broken={5}), count=3)) == [4, 15, 25]
    assert indices(Film(times, 3.0, keeps=False, broken={0, 29})) == list(range(1, 29))


def test_without_a_wish_every_frame_in_order_and_lazily():
    def endless():
        index = 0
        while True:
            yield Frame(np.zeros((1, 1, 3), np.uint8), index / 30, index)
            index += 1

    picked = sample(endless(), fps=1)
    assert [next(picked).index for _ in range(3)] == [0, 30, 60]
    assert next(sample(endless())).index == 0
    assert indices(sample(frames_at([0, 0, 1]))) == [0, 1, 2]
    assert list(sample([], fps=1)) == list(sample([], count=3)) == list(sample([])) == []


@pytest.mark.parametrize(
    "how", [{"fps": 0}, {"fps": -1}, {"fps": math.nan}, {"count": 0}, {"max_frames": -2}, {"fps": 1, "count": 1}]
)
def test_wrong_wishes_are_refused_at_the_call(how):
    with pytest.raises(UsageError) as caught:
        sample([], **how)
    assert caught.value.exit_code == 2


raw_times = st.lists(st.one_of(st.none(), st.floats(-1e4, 1e4)), max_size=50)


@given(raw_times, st.one_of(st.none(), st.floats(1, 100)), st.one_of(st.none(), st.floats(-100, 100)))
def test_the_clock_never_steps_back(raw, fps, start):
    clock = Clock(fps, start)
    stamped = [clock.stamp(t) for t in raw]
    assert stamped == sorted(stamped) and all(t >= 0 for t in stamped)


def test_the_clock():
    def stamps(raw, fps=10.0, start=None):
        clock = Clock(fps, start)
        return [round(clock.stamp(t), 3) for t in raw]

    assert stamps([5.0, 5.1, 5.3]) == [0, 0.1, 0.3]
    assert stamps([0.8, 0.9], start=0.0) == [0.8, 0.9]  # the first frames were broken
    assert stamps([0.0, None, None, 0.3]) == [0, 0.1, 0.2, 0.3]
    assert stamps([None, None]) == [0, 0.1]
    assert stamps([0, 0.1, 0.2, 0.0, 0.3]) == [0, 0.1, 0.2, 0.3, 0.6]  # two recordings joined
    assert stamps([0, 0.5, None], fps=None) == [0, 0.5, 1.0]
