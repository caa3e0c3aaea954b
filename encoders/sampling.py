"""Which frames of a video to look at, chosen by their timestamps.

By index, "one frame per second" of a video with a variable frame rate lands in the wrong seconds. An even choice needs
the duration; where the header's cannot be trusted, a file is read through once for it. A source that can be read only
once is thinned on the way: frames fall into time buckets of one width, the first of each bucket is kept, and when too
many are kept the width doubles.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from fluvial.adapters.errors import UsageError
from fluvial.encoders.frame import Frame, FrameList, FrameSource, Pending

_HELD = 4  # frames held for each that will be chosen, in one pass
_NOISE = 1e-6  # seconds: timestamps are quotients, and 0.3 may come as 0.29999999999999999


def sample(
    source: FrameSource | Iterable[Frame],
    *,
    fps: float | None = None,
    max_frames: int | None = None,
    count: int | None = None,
) -> Iterator[Frame]:
    """Choose frames by time; they come in order and none twice.

    `fps`: the first frame at or after each tick 0, 1/fps, 2/fps, ... seconds, so that a slower source gives all its
    frames. `count`: at most `count` frames evenly over the whole duration; each is the one on the screen in the middle
    of its share of the time, so fewer come only where one picture fills several shares or the source has fewer.
    `max_frames` bounds `fps`: where that would give more, frames are chosen evenly, and the end is not cut off.
    Without any of them, every frame.

    Streams: one frame is held. Of a plain iterable the duration shows only at its end: there a bound (`count`,
    `max_frames`) holds at most 4 x count + 1 frames, and gives out none before the end.

    Raises:
        UsageError: `fps` and `count` together, or a number that is not positive.
    """
    check(fps, max_frames, count)
    frames = source if isinstance(source, FrameSource) else FrameList(source)
    most = min((n for n in (count, max_frames) if n is not None), default=None)
    if most is not None:
        return _bounded(frames, fps, most)
    return iter(frames) if fps is None else _at_ticks(frames, fps)


def at_times(source: FrameSource, times: Sequence[float]) -> Iterator[Frame]:
    """The frame on the screen at each of the rising `times` (seconds); one that fills several comes once."""
    return _on_screen(source.pending(), times)


def _bounded(frames: FrameSource, fps: float | None, most: int) -> Iterator[Frame]:
    if fps is None and frames.frames is not None and frames.frames <= most:
        yield from _first(iter(frames), most)
    elif (extent := frames.extent()) is None:
        yield from _spread((frames if fps is None else FrameList(_at_ticks(frames, fps))).pending(), most)
    elif fps is None and extent.frames is not None and extent.frames <= most:
        yield from _first(iter(frames), most)
    elif fps is not None and extent.seconds * fps <= most:
        yield from _first(_at_ticks(frames, fps), most)
    else:
        yield from _on_screen(frames.pending(), [(part + 0.5) * extent.seconds / most for part in range(most)])


def check(fps: float | None, max_frames: int | None, count: int | None) -> None:
    """Raises UsageError for wishes that cannot be met, as `sample` does."""
    if fps is not None and count is not None:
        raise UsageError("fps and count are both given.", "They are two ways to choose frames.", "Give one of them.")
    for name, number in (("fps", fps), ("max_frames", max_frames), ("count", count)):
        if number is not None and not (math.isfinite(number) and number > 0):
            raise UsageError(f"{name} is {number}.", "It must be a positive number.", "Leave it out for every frame.")


def _first(frames: Iterator[Frame], most: int) -> Iterator[Frame]:
    for number, frame in enumerate(frames):
        if number < most:  # goes on to the end, so that the reader's report is complete
            yield frame


def _at_ticks(frames: FrameSource, fps: float) -> Iterator[Frame]:
    tick = 0
    for step in frames.pending():
        if step.t < tick / fps - _NOISE:
            continue
        if (frame := step.frame()) is not None:  # a broken one leaves its tick to the next
            yield frame
            tick = math.floor((step.t + _NOISE) * fps) + 1


def _on_screen(steps: Iterator[Pending], times: Sequence[float]) -> Iterator[Frame]:
    """The frames on the screen at each of the rising times."""
    part = 0
    held: Pending | None = None
    for step in steps:
        if part == len(times):
            continue  # nothing more is wanted, but the reader's report shall be complete
        if held is not None and step.t > times[part] + _NOISE:
            if (frame := held.frame()) is not None:
                yield frame
            while part < len(times) and step.t > times[part] + _NOISE:
                part += 1
            held = None
        # Only the next frame tells whether this one is wanted, so it is held until then.
        if part < len(times):
            held = step.held() or held
    if held is not None and (frame := held.frame()) is not None:
        yield frame


def _spread(steps: Iterator[Pending], count: int) -> Iterator[Frame]:
    """As `_on_screen` for a duration that only the end tells, to within half a part."""
    kept: list[Frame] = []
    first, last, total, width, lasts = 0.0, 0.0, 0, 0.0, None

    def bucket(frame: Frame | Pending) -> int:
        return math.floor((frame.t - first) / width)

    for step in steps:
        if total == 0:
            first = step.t
        last, lasts, total = step.t, step.lasts, total + 1
        if width and kept and bucket(step) == bucket(kept[-1]):
            continue
        if (frame := step.frame()) is None:
            continue
        kept.append(frame)
        if len(kept) > _HELD * count and kept[-1].t == kept[0].t:
            kept.pop()  # no time to tell them apart by
        while len(kept) > _HELD * count:
            # The least width that helps: it doubles only while more than _HELD x count buckets are in use, so a bucket
            # is never wider than 2 / _HELD of a part.
            span = kept[-1].t - kept[0].t
            width = 2 * width or max(min(_smallest_gap(kept), span / (_HELD * count)), span * _NOISE)
            kept = [next(group) for _, group in itertools.groupby(kept, key=bucket)]
    if len(kept) <= count:
        yield from kept
        return
    end = last + (lasts or (last - first) / max(1, total - 1))
    times = [frame.t for frame in kept]
    parts = (first + (part + 0.5) * (end - first) / count for part in range(count))
    for index, _ in itertools.groupby(max(0, bisect.bisect_right(times, t + _NOISE) - 1) for t in parts):
        yield kept[index]


def _smallest_gap(frames: list[Frame]) -> float:
    return min((b.t - a.t for a, b in itertools.pairwise(frames) if b.t > a.t), default=0.0)
