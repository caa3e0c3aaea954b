"""What a decoder of videos offers to `VideoReader`, and the clock that makes its timestamps usable.

A backend yields pictures in the order they are shown, with raw timestamps; everything that must be the same for all of
them (index, start at 0, no step back, the report) is done once, in the reader.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fluvial.encoders.frame import Convert, Extent


class Picture(NamedTuple):
    """`seconds` and `lasts` as the file says, None where it does not; `rgb` and `hold` as in `Pending`."""

    seconds: float | None
    lasts: float | None
    rgb: Convert
    hold: Callable[[], Convert | None] | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the header says: `width`, `height` as shown (rotation and cap applied), `fps` on average, `duration` in
    seconds, `start` the timestamp of the start. None where unknown. `frames` only where the count can be trusted;
    `exact` says whether `duration` can."""

    width: int | None = None
    height: int | None = None
    fps: float | None = None
    duration: float | None = None
    exact: bool = False
    frames: int | None = None
    start: float | None = None


class Backend(Protocol):
    """One pass over one video. `broken` counts the packets that could not be decoded so far."""

    facts: Facts
    broken: int

    def pictures(self) -> Iterator[Picture]: ...

    def extent(self) -> Extent | None:
        """The length of the video, found without decoding it; None where that cannot be done."""

    def close(self) -> None: ...


class Clock:
    """Raw timestamps -> seconds from the start that never step back.

    Where a timestamp is missing (raw streams), time goes on by one frame; where it jumps back (joined recordings), the
    later part is moved behind the earlier one.
    """

    def __init__(self, fps: float | None, start: float | None) -> None:
        self.step = 1 / fps if fps else 0.04
        self._known_step = fps is not None
        self._start = start
        self._offset = 0.0
        self._last: float | None = None

    def stamp(self, raw: float | None) -> float:
        if raw is not None and (self._start is None or (self._last is None and raw < self._start)):
            self._start = raw
        if raw is None:
            t = 0.0 if self._last is None else self._last + self.step
        else:
            t = raw - (self._start or 0.0) + self._offset
            if self._last is not None and t < self._last:
                self._offset += self._last + self.step - t
                t = self._last + self.step
        if self._last is not None and t > self._last and not self._known_step:
            self.step = t - self._last
        self._last = t
        return t


def sane(number: float | None, most: float = math.inf) -> float | None:
    """A positive finite number of at most `most`, else None: decoders give 0, NaN and -2**63 for 'unknown'."""
    return number if number is not None and math.isfinite(number) and 0 < number <= most else None
