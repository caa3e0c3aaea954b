"""Frame economy: a frame that shows nothing new is not worth its tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fluvial.adapters.errors import UsageError
from fluvial.encoders.frame import RGB, Frame

BLOCKS = 16  # a frame is compared by the mean colours of 16 x 16 blocks


@dataclass
class Economy:
    """Wants a frame whose mean colour in some block differs from that of the last wanted one by more than `threshold`
    (of the full range), and in any case one every `at_least_every` seconds. Errors: UsageError."""

    threshold: float = 0.02
    at_least_every: float = 10.0
    _last: tuple[float, NDArray[np.float32]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1 or not self.at_least_every > 0:
            raise UsageError(
                f"A threshold of {self.threshold} and a frame every {self.at_least_every} s do not fit.",
                "The first is a share of the range of colours, 0 to 1; the second a positive number of seconds.",
            )

    def wants(self, frame: Frame) -> bool:
        """Whether the frame shows something new; if so, the next ones are compared with it."""
        blocks = _blocks(frame.rgb)
        if self._last is not None:
            t, last = self._last
            if 0 <= frame.t - t < self.at_least_every and float(abs(blocks - last).max()) <= self.threshold:
                return False
        self._last = frame.t, blocks
        return True


def _blocks(rgb: RGB) -> NDArray[np.float32]:
    """Mean colours [16, 16, 3], 0 to 1."""
    import cv2

    return cv2.resize(rgb, (BLOCKS, BLOCKS), interpolation=cv2.INTER_AREA).astype(np.float32) / np.float32(255)
