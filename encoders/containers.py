"""Is the file whole? Answered from its own structure, without decoding.

Most containers declare the size of their parts, so a file that was cut short contradicts itself: this is certain,
where comparing frame counts and durations is not (an MKV of 90 frames can claim 510, and audio can be longer than
video). Only headers are read. Sources: ISO/IEC 14496-12 (boxes), RFC 8794 (EBML), RIFF/OpenDML, PNG, GIF89a.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class Layout:
    """`whole` is True or False where the structure proves it, None where it cannot say; `missing` in bytes, if known.

    For MP4: `index` is False if the sample index (moov) is absent, `fragmented` if samples are listed in fragments
    (then the header's counts are estimates), `seconds` is the length of the presentation, edit lists applied.
    """

    whole: bool | None = None
    missing: int = 0
    index: bool = True
    fragmented: bool = False
    seconds: float | None = None


def layout_of(source: Path | bytes, kind: str) -> Layout:
    """The layout of a file or its bytes; an empty `Layout()` for kinds that declare no sizes."""
    walk = _WALKS.get(kind)
    if walk is None:
        return Layout()
    stream: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with stream:
        size = stream.seek(0, io.SEEK_END)
        try:
            return walk(stream, size)
        except (struct.error, IndexError, OverflowError):
            return Layout()  # headers too broken to judge by: the decoder will say what it thinks


def _until(end: int, size: int) -> Layout:
    return Layout(whole=end <= size, missing=max(0, end - size))


def _mp4(stream: BinaryIO, size: int) -> Layout:
    at, missing, seen, seconds = 0, 0, set(), None
    while at + 8 <= size:
        length, name, header = _box(stream, at)
        length = length or size - at  # 0: to the end of the file
        if length < header:
            return Layout(index=b"moov" in seen, seconds=seconds)
        if at + length <= size:
            seen.add(name)
        if name == b"moov":
            seconds = _mvhd_seconds(stream, at + header, min(at + length, size))
        missing = max(0, at + length - size)
        at += length
    whole = missing == 0 and at == size
    return Layout(whole, missing, b"moov" in seen, b"moof" in seen, seconds)


def _box(stream: BinaryIO, at: int) -> tuple[int, bytes, int]:
    """(length, name, header length) of the box at a position."""
    stream.seek(at)
    length, name = struct.unpack(">I4s", stream.read(8))
    if length == 1:
        return struct.unpack(">Q", stream.read(8))[0], name, 16
    return length, name, 8


def _mvhd_seconds(stream: BinaryIO, at: int, end: int) -> float | None:
    while at + 8 <= end:
        length, name, header = _box(stream, at)
        if length < header:
            return None
        if name == b"mvhd":
            stream.seek(at + header)
            body = stream.read(32)
            scale, duration = (
                struct.unpack_from(">IQ", body, 20) if body[0] == 1 else struct.unpack_from(">II", body, 12)
            )
            known = scale and 0 < duration < (2**64 - 1 if body[0] == 1 else 2**32 - 1)
            return duration / scale if known else None
        at += length
    return None


def _matroska(stream: BinaryIO, size: int) -> Layout:
    at = 0
    for _ in range(2):  # the EBML header, then the one Segment that holds the rest
        stream.seek(at)
        head = stream.read(16)
        id_length = _vint_length(head[0])
        length = _vint_length(head[id_length])
        value = int.from_bytes(head[id_length : id_length + length], "big") & ((1 << 7 * length) - 1)
        at += id_length + length
        if value == (1 << 7 * length) - 1:  # written live, size unknown
            return Layout()
        at += value
    return _until(at, size)


def _vint_length(first: int) -> int:
    if first == 0:
        raise IndexError("no length bit in a vint")
    return 9 - first.bit_length()


def _riff(stream: BinaryIO, size: int) -> Layout:
    at = 0
    while at + 8 <= size:  # AVI above 1 GB is several RIFF chunks in a row
        stream.seek(at)
        name, length = struct.unpack("<4sI", stream.read(8))
        if name != b"RIFF":
            break
        if length == 0:  # the writer never came back to fill it in
            return Layout()
        at += 8 + length
        if at > size:
            break
        at += length & 1
    return Layout(whole=at <= size + 1, missing=max(0, at - size) if at > size + 1 else 0)


def _png(stream: BinaryIO, size: int) -> Layout:
    at = 8
    while at + 8 <= size:
        stream.seek(at)
        length, name = struct.unpack(">I4s", stream.read(8))
        at += 12 + length
        if name == b"IEND" or at > size:
            return _until(at, size)
    return Layout(whole=False)


def _gif(stream: BinaryIO, size: int) -> Layout:
    stream.seek(max(0, size - 64))
    return Layout(whole=stream.read().rstrip(b"\0").endswith(b";"))


_WALKS = {
    "mp4": _mp4,
    "avif": _mp4,
    "heic": _mp4,
    "matroska": _matroska,
    "avi": _riff,
    "webp": _riff,
    "png": _png,
    "gif": _gif,
}
