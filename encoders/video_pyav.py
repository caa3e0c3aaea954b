"""Videos through PyAV (the `[video]` extra): the same FFmpeg, with every timestamp, duration and error in the open.

What FFmpeg's own player would do is done here: rotation by the display matrix, and a broken packet is counted and
skipped instead of ending the video.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fluvial.adapters.errors import MediaError
from fluvial.encoders.containers import Layout
from fluvial.encoders.frame import MAX_PIXELS, RGB, Extent, fit
from fluvial.encoders.image import check_size
from fluvial.encoders.video_backend import Facts, Picture, sane

# Our kinds in FFmpeg's words: the kind was sniffed, so that no other demuxer (a playlist) gets to see the file.
_DEMUXERS = {"y4m": "yuv4mpegpipe", "annexb": None}
# Containers whose timestamps never jump, so that those of the packets tell the length.
_STEADY = frozenset({"mp4", "matroska"})
# How often a decoder is asked for what it holds at the end: each broken frame among that costs one time.
_FLUSHES = 64


def import_av() -> Any:
    """The av module; MediaError where it is there but does not load."""
    try:
        import av
    except ImportError as error:
        hint = "Install it again: pip install 'fluvial[video]'. Or choose the backend 'opencv'."
        raise MediaError("PyAV cannot be loaded.", f"{error}.", hint) from error
    return av


class PyAVBackend:
    """One pass over a video file with PyAV."""

    def __init__(self, path: Path, name: str, kind: str, layout: Layout, max_pixels: int | None) -> None:
        self._av = av = import_av()
        self.broken = 0
        self._name, self._kind, self._layout = name, kind, layout
        self._count = 0
        self._end: float | None = None  # of the packets so far, in the timestamps of the file
        self._max_pixels = max_pixels
        try:
            self._container = av.open(
                str(path),
                format=_DEMUXERS.get(kind, kind),
                container_options={"protocol_whitelist": "file"},
                metadata_errors="replace",
            )
        except av.error.FFmpegError as error:
            raise MediaError(f"Cannot read the video {name}.", f"{error.strerror}.") from error
        try:
            self._stream = self._find_stream()
            self._frames = self._decode()
            # Decoded ahead: the rotation, and with it the size as shown, are known only from a frame.
            self._ahead = next(self._frames, None)
            self.facts = self._read_facts()
        except BaseException:
            self.close()
            raise

    def _find_stream(self) -> Any:
        cover = self._av.stream.Disposition.attached_pic  # album art is a "video" of one picture
        streams = [s for s in self._container.streams.video if not s.disposition & cover and s.codec_context]
        if not streams:
            raise MediaError(f"Cannot read the video {self._name}.", "There is no video in it, only other streams.")
        stream = streams[0]
        codec = stream.codec_context
        check_size(codec.width, codec.height, MAX_PIXELS, "video", self._name)
        codec.options = {"max_pixels": str(MAX_PIXELS)}  # and for sizes that change on the way
        # Threads over frames are fast, but an error in one loses its neighbours: not for a file that is cut short.
        codec.thread_type = "SLICE" if self._layout.whole is False else "AUTO"
        codec.thread_count = min(4, os.cpu_count() or 1)  # each thread holds a frame
        return stream

    def _read_facts(self) -> Facts:
        stream, container, frame = self._stream, self._container, self._ahead
        width, height = (0, 0) if frame is None else fit(frame.width, frame.height, self._max_pixels)
        if frame is not None and _quarter_turns(frame) % 2:
            width, height = height, width
        if stream.duration is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:  # of the longest stream; MKV counts it from 0, wherever the start is
            duration = (container.duration - max(0, container.start_time or 0)) / 1e6
        else:
            duration = None
        rate = stream.average_rate or stream.guessed_rate
        mp4 = self._kind == "mp4" and not self._layout.fragmented
        return Facts(
            width=width or None,
            height=height or None,
            fps=sane(float(rate), most=960) if rate else None,
            duration=sane(duration),
            exact=sane(duration) is not None and (mp4 or self._kind == "avi"),
            frames=stream.frames if mp4 and stream.frames > 0 else None,
            start=None if stream.start_time is None else float(stream.start_time * stream.time_base),
        )

    def _packets(self) -> Iterator[Any]:
        for packet in self._container.demux(self._stream):
            if packet.pts is not None and packet.size:
                self._count += 1
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self._end = end if self._end is None else max(self._end, end)
            yield packet

    def _decode(self) -> Iterator[Any]:
        """The frames of FFmpeg in the order they are shown; what cannot be decoded is counted and skipped."""
        error = self._av.error.FFmpegError
        packets = self._packets()
        flushes = 0
        while flushes < _FLUSHES:
            try:
                packet = next(packets, None)
            except error:  # the container itself breaks off
                self.broken += 1
                packet = None
            flushes += packet is None
            try:
                # None asks the decoder for what it still holds, which a container that breaks off has not done.
                yield from self._stream.codec_context.decode(None) if packet is None else packet.decode()
            except EOFError:  # it has given out everything
                return
            except error:
                self.broken += 1

    def extent(self) -> Extent | None:
        if self._kind not in _STEADY:
            return None
        with contextlib.suppress(self._av.error.FFmpegError):
            for _ in self._packets():
                pass
        if self._end is None or self.facts.start is None or self._end <= self.facts.start:
            return None
        return Extent(self._end - self.facts.start, self._count)

    def pictures(self) -> Iterator[Picture]:
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            yield self._picture(ahead)
        for frame in self._frames:
            yield self._picture(frame)

    def _picture(self, frame: Any) -> Picture:
        base = frame.time_base
        seconds = None if frame.pts is None else float(frame.pts * base)
        lasts = sane(float(frame.duration * base)) if frame.duration else None
        return Picture(seconds, lasts, lambda: self._convert(frame))

    def _convert(self, frame: Any) -> RGB | None:
        check_size(frame.width, frame.height, MAX_PIXELS, "video", self._name)
        width, height = fit(frame.width, frame.height, self._max_pixels)
        try:
            rgb = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
        except (self._av.error.FFmpegError, ValueError):
            return None
        return np.ascontiguousarray(np.rot90(rgb, _quarter_turns(frame)))

    def close(self) -> None:
        self._container.close()


def _quarter_turns(frame: Any) -> int:
    """How often to turn the stored picture by 90 degrees against the clock, as `np.rot90` does."""
    return round(float(frame.rotation) / 90)
