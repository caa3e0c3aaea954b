"""How the reading of a video went, in numbers and in one sentence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Report:
    """What was expected and what came out.

    `expected` is the number of frames, None where the container's count cannot be trusted; `decoded` and `broken` count
    frames and packets; `seconds` is where the last decoded frame ends. `whole` is what the file's own structure proves,
    None if nothing. `finished` is False while reading goes on or where it was stopped early: then `truncated` only
    speaks of what the structure proves.
    """

    name: str
    expected: int | None = None
    expected_seconds: float | None = None
    whole: bool | None = None
    decoded: int = 0
    broken: int = 0
    seconds: float = 0.0
    truncated: bool = False
    finished: bool = False

    def finish(self, step: float) -> None:
        """Called at the end of the frames; `step` is the time from frame to frame in seconds."""
        self.finished = True
        if self.whole is False:
            self.truncated = True
        elif self.expected is not None:
            # Both must be short: frames lost on the way leave the time, a trimmed file (edit list) leaves the frames.
            self.truncated = self.decoded < self.expected and self._short_by(max(2 * step, 0.01 * self.seconds))
        elif self.whole is None:
            # Only a duration to go by, which may be that of the audio or a guess: be slow to accuse.
            self.truncated = self._short_by(max(1.0, 2 * step, 0.1 * self.seconds))

    def _short_by(self, margin: float) -> bool:
        return self.expected_seconds is not None and self.seconds < self.expected_seconds - margin

    def message(self) -> str:
        """One line for people."""
        # A trimmed file (edit list) stores more frames than it shows; that is no loss to speak of.
        lost = self.expected is not None and self.expected > self.decoded and (self.truncated or self.broken)
        of_frames = f" of {self.expected}" if lost else ""
        frames = f"{self.decoded}{of_frames} frame{'s' if (self.expected or self.decoded) != 1 else ''}"
        of_time = ""
        if self.truncated and self.expected_seconds is not None and self.expected_seconds > self.seconds:
            of_time = f" of {self.expected_seconds:.1f}"
        text = f"{self.name}: {frames} decoded ({self.seconds:.1f}{of_time} s)"
        if self.broken:
            text += f", {self.broken} broken and skipped"
        if self.truncated:
            text += "; the file is truncated, its end is missing"
        elif not self.finished:
            text += "; not read to the end"
        return text + "."
