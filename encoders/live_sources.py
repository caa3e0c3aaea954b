"""Everything that can be watched, behind one door: a file, a folder of pictures, a camera, an address, a test pattern,
lines of text. Each is iterated for frames, gaps or texts, says whether it is `live`, and can be closed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, TextIO
from urllib.parse import urlsplit

import numpy as np

from fluvial.adapters.errors import FluvialError, MediaError, UsageError
from fluvial.encoders.camera import Camera
from fluvial.encoders.frame import Frame, Gap
from fluvial.encoders.image import read_image
from fluvial.encoders.sampling import check, sample
from fluvial.encoders.source import IMAGE_KINDS, head_of, sniff
from fluvial.encoders.video import open_video
from fluvial.encoders.video_opencv import import_cv2

SCHEMES = ("rtsp", "rtsps", "http", "https")


class Source(Protocol):
    """`live`: it goes on whether or not anybody keeps up."""

    live: bool

    def __iter__(self) -> Iterator[Frame | Gap | str]: ...
    def close(self) -> None: ...


def open_source(where: str | int | Path, *, fps: float | None = None, network: bool = False) -> Source:
    """The source that `where` names: a video file, a folder of pictures, "camera" or "camera:1" (or an index),
    "test" or "test:SECONDS" (a generated pattern), "-" (lines of text on stdin), or, with `network`, an RTSP or HTTP
    address. `fps` frames a second are looked at, 2 by default.

    Raises MediaError for what cannot be read, UsageError for an address without `network` or a wrong `fps`.
    """
    check(fps, None, None)
    fps, name = fps or 2.0, str(where)
    if isinstance(where, int) or re.fullmatch(r"camera(:\d+)?", name):
        return Camera(where if isinstance(where, int) else int(name.partition(":")[2] or 0), fps=fps)
    if pattern := re.fullmatch(r"test(?::(\d+(?:\.\d+)?))?", name):
        return Pattern(float(pattern[1] or 10), fps)
    if name == "-":
        return Lines(sys.stdin)
    if "://" in name:
        return _address(name, fps, network)
    return Folder(Path(where), fps) if Path(where).is_dir() else File(Path(where), fps)


def _address(where: str, fps: float, network: bool) -> Camera:
    scheme = urlsplit(where).scheme
    if scheme not in SCHEMES:
        raise UsageError(f"Addresses of the kind {scheme}:// are not opened.", "", f"One of {', '.join(SCHEMES)}.")
    if not network:
        raise UsageError("The network is off.", f"{scheme}://... is an address.", "Allow it with --network.")
    return Camera(where, fps=fps)


class File:
    """A video file, read as fast as it is wanted; `truncated` and broken frames are in `warning`."""

    live = False

    def __init__(self, path: Path, fps: float) -> None:
        self._reader, self._fps = open_video(path), fps

    def __iter__(self) -> Iterator[Frame]:
        with self._reader as reader:
            yield from sample(reader, fps=self._fps)

    @property
    def warning(self) -> str:
        report = self._reader.report
        return report.message() if report.truncated or report.broken else ""

    def close(self) -> None:
        """Nothing to do: a read of a file does not block."""


class Folder:
    """Pictures of a folder in the order of their names (numbers by value), `fps` of them a second."""

    live = False

    def __init__(self, path: Path, fps: float) -> None:
        def order(file: Path) -> list[tuple[bool, int, str]]:
            return [(not p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in re.split(r"(\d+)", file.name)]

        files = sorted((file for file in path.iterdir() if file.is_file()), key=order)
        self.files = [file for file in files if sniff(head_of(file)) in IMAGE_KINDS]
        self.fps, self.broken = fps, 0
        if not self.files:
            raise MediaError(f"There is no picture in {path}.", hint="Name a folder with JPEG, PNG or other pictures.")

    def __iter__(self) -> Iterator[Frame]:
        for index, file in enumerate(self.files):
            try:
                yield Frame(read_image(file).rgb, index / self.fps, index)
            except FluvialError:
                self.broken += 1

    @property
    def warning(self) -> str:
        return f"{self.broken} of {len(self.files)} pictures could not be read." if self.broken else ""

    def close(self) -> None:
        """Nothing to do: a read of a file does not block."""


class Pattern:
    """A generated pattern for `seconds`: a red square that moves to the right over grey, round and round."""

    live = False

    def __init__(self, seconds: float, fps: float, size: int = 128) -> None:
        self.seconds, self.fps, self.size = seconds, fps, size

    def __iter__(self) -> Iterator[Frame]:
        cv2, size = import_cv2(), self.size
        for index in range(int(self.seconds * self.fps + 1e-6)):
            rgb = np.full((size, size, 3), 128, np.uint8)
            left = int(index / self.fps * size / 8) % size
            cv2.rectangle(rgb, (left, size // 3), (left + size // 4, 2 * size // 3), (220, 30, 30), -1)
            yield Frame(rgb, index / self.fps, index)

    def close(self) -> None:
        """Nothing to do."""


class Lines:
    """Lines of text as events."""

    live = False

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[str]:
        for line in self._stream:
            if line.strip():
                yield line.rstrip("\r\n")

    def close(self) -> None:
        """Nothing to do: the stream is the caller's."""
