"""One picture with its time, and what every source of pictures offers.

A `Frame` is final: RGB bytes, seconds, index. A `Pending` is a frame whose pixels are not converted yet: decoding a
packet is needed for every frame, converting it to RGB only for those that somebody keeps. H rows, W columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RGB = NDArray[np.uint8]  # [H, W, 3]
Convert = Callable[[], RGB | None]

# A picture above this is refused before it is decoded: a 48 KB PNG can stand for 1.6 GB of pixels.
MAX_PIXELS = 64_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture: `rgb` uint8 [H, W, 3], `t` in seconds from the start, `index` in the order of decoding.

    Raises ValueError if the array has another shape or type: a reader that hands one out has a bug.
    """

    rgb: RGB
    t: float = 0.0
    index: int = 0

    def __post_init__(self) -> None:
        shape = self.rgb.shape
        if self.rgb.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(f"A frame is uint8 [H, W, 3], not {self.rgb.dtype} {list(shape)}.")

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])


@dataclass(frozen=True, slots=True)
class Gap:
    """A live source had no pictures for `seconds`, up to second `t` of the stream, and `why`."""

    t: float
    seconds: float
    why: str = ""

    @property
    def text(self) -> str:
        """What the model is told."""
        return f"[no picture for {self.seconds:.1f} s]"


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A decoded frame before the conversion to RGB.

    `lasts` is its time on the screen in seconds, None where the file does not say. `rgb()` gives [H, W, 3], or None if
    the picture turns out to be broken. Where `hold` is given, `rgb` works only until the next frame is asked for:
    `hold()` takes the picture from the decoder and gives an `rgb` for later, or None if the picture is broken.
    """

    t: float
    index: int
    lasts: float | None
    rgb: Convert
    hold: Callable[[], Convert | None] | None = None

    def frame(self) -> Frame | None:
        rgb = self.rgb()
        return None if rgb is None else Frame(rgb, self.t, self.index)

    def held(self) -> Pending | None:
        """The same frame, to be converted whenever it is wanted; None if it is broken."""
        if self.hold is None:
            return self
        later = self.hold()
        return None if later is None else Pending(self.t, self.index, self.lasts, later)


class Extent(NamedTuple):
    """`seconds` from the start of the first frame to the end of the last; `frames`, None if not counted."""

    seconds: float
    frames: int | None


class FrameSource(ABC):
    """Anything that yields frames in time order: a file, an animation, later a live source."""

    @abstractmethod
    def pending(self) -> Iterator[Pending]:
        """The frames in order, not converted yet."""

    @property
    def frames(self) -> int | None:
        """The number of frames, only where it is known beforehand and can be trusted; None otherwise."""
        return None

    def extent(self) -> Extent | None:
        """How long it is; may read through the source once, if it can be read again. None if it cannot."""
        return None

    def __iter__(self) -> Iterator[Frame]:
        for step in self.pending():
            if (frame := step.frame()) is not None:
                yield frame


class FrameList(FrameSource):
    """Frames that are in hand already (or any iterable of them) as a source."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        self._frames = frames

    def pending(self) -> Iterator[Pending]:
        def rgb_of(picture: Frame) -> Convert:
            return lambda: picture.rgb

        for frame in self._frames:
            yield Pending(frame.t, frame.index, None, rgb_of(frame))


def fit(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """The largest (width, height) of the same shape with at most `max_pixels` pixels; never enlarges."""
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    scale = (max_pixels / (width * height)) ** 0.5
    fitted = max(1, int(width * scale)), max(1, int(height * scale))
    # A strip one pixel thin cannot shrink on its short side: shrink the long one to what is left.
    return min(fitted[0], max(1, max_pixels // fitted[1])), min(fitted[1], max(1, max_pixels // fitted[0]))
