"""Media files made for the tests, byte by byte where no library writes what is needed.

Every picture says which one it is: frame `i` is grey of level `8 * i`, so `number(frame)` reads the index back. A
picture of four colours says how it is turned: `corners(rgb)` is "RGBW" when upright.
"""

from __future__ import annotations

import importlib.util
import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
import cv2
import numpy as np
import pytest
from PIL import Image

cv2.setNumThreads(1)
HAS_PYAV = importlib.util.find_spec("av") is not None
BACKENDS = ["opencv", pytest.param("pyav", marks=pytest.mark.skipif(not HAS_PYAV, reason="needs the [video] extra"))]


def grey(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    return np.full((height, width, 3), 8 * index, np.uint8)


def number(rgb: np.ndarray) -> int:
    return round(float(rgb.mean()) / 8)


def four_colours(width: int = 64, height: int = 48) -> np.ndarray:
    rgb = np.full((height, width, 3), 255, np.uint8)
    rgb[: height // 2, : width // 2] = 255, 0, 0
    rgb[: height // 2, width // 2 :] = 0, 255, 0
    rgb[height // 2 :, : width // 2] = 0, 0, 255
    return rgb


def corners(rgb: np.ndarray) -> str:
    """The colours at the upper left, upper right, lower left, lower right."""
    height, width = rgb.shape[:2]
    names = {(1, 0, 0): "R", (0, 1, 0): "G", (0, 0, 1): "B", (1, 1, 1): "W"}
    points = [(y * height // 4, x * width // 4) for y in (1, 3) for x in (1, 3)]
    return "".join(names.get(tuple((rgb[p] > 127).astype(int)), "?") for p in points)


def encoded(rgb: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    image = rgb if isinstance(rgb, Image.Image) else Image.fromarray(rgb)
    buffer = io.BytesIO()
    if kind == "avif":
        options = {"speed": 10, "max_threads": 1, **options}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def animation(kind: str, pictures: Sequence[np.ndarray], durations_ms: Sequence[int], **options: object) -> bytes:
    first, *rest = [Image.fromarray(picture) for picture in pictures]
    lossless = {"lossless": True} if kind == "webp" else {}
    durations = list(durations_ms)
    return encoded(first, kind, save_all=True, append_images=rest, duration=durations, loop=0, **lossless, **options)


def write_video(path: Path, pictures: Sequence[np.ndarray], fps: float = 10, codec: str = "mp4v") -> Path:
    height, width = pictures[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), fps, (width, height))
    assert writer.isOpened(), f"OpenCV cannot write {path.name}"
    for picture in pictures:
        writer.write(np.ascontiguousarray(picture[..., ::-1]))
    writer.release()
    return path


def boxes(data: bytes) -> list[tuple[bytes, int, int]]:
    """(name, start, end) of the top-level boxes of an MP4."""
    found, at = [], 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        found.append((name, at, at + length))
        at += length
    return found


def index_first(path: Path) -> Path:
    """Moves the index of an MP4 before its data ("fast start"), so that the file can be cut and still opens."""
    data = path.read_bytes()
    parts = {name: data[start:end] for name, start, end in boxes(data)}
    moov = bytearray(parts[b"moov"])
    at = moov.find(b"stco") + 8
    for entry in range(struct.unpack_from(">I", moov, at)[0]):
        place = at + 4 + 4 * entry
        struct.pack_into(">I", moov, place, struct.unpack_from(">I", moov, place)[0] + len(moov))
    rest = b"".join(part for name, part in parts.items() if name not in (b"ftyp", b"moov"))
    path.write_bytes(parts[b"ftyp"] + moov + rest)
    return path


def cut(path: Path, keep: float) -> Path:
    """Keeps only this part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def rotate(path: Path, degrees: int) -> Path:
    """Sets the display matrix in an MP4: players turn the picture clockwise by this much."""
    data = bytearray(path.read_bytes())
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    one = 1 << 16
    matrix = data.find(b"tkhd") + 44
    struct.pack_into(">9i", data, matrix, a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def trim(path: Path, seconds: float) -> Path:
    """Shortens what an MP4 shows with an edit list, as phones do: all frames stay in the file."""
    data = bytearray(path.read_bytes())
    ms = int(seconds * 1000)  # OpenCV's writer sets the movie's time scale to 1000
    struct.pack_into(">I", data, data.find(b"mvhd") + 4 + 16, ms)
    struct.pack_into(">I", data, data.find(b"elst") + 4 + 8, ms)
    path.write_bytes(data)
    return path


def write_mkv(
    path: Path, times: Sequence[float], *, claimed_fps: float = 30, seconds: float | None = None, picture=grey
) -> Path:
    """A Matroska file of JPEG pictures at these times: variable frame rate without any encoder.

    The header claims `claimed_fps` and a duration in `seconds` (the last time + 1/fps unless given).
    """

    def element(name: str, payload: bytes) -> bytes:
        return bytes.fromhex(name) + struct.pack(">Q", len(payload) | 1 << 56) + payload

    def whole(number: int) -> bytes:
        return number.to_bytes(8, "big")

    duration = seconds if seconds is not None else times[-1] + 1 / claimed_fps
    header = element("4282", b"matroska") + element("4287", whole(4)) + element("4285", whole(2))
    info = element("2AD7B1", whole(1_000_000)) + element("4489", struct.pack(">d", duration * 1000))
    info += element("4D80", b"test") + element("5741", b"test")
    size = element("B0", whole(64)) + element("BA", whole(48))
    rate = element("23E383", whole(int(1e9 / claimed_fps)))
    number_type = element("D7", whole(1)) + element("73C5", whole(1)) + element("83", whole(1))
    track = element("AE", number_type + element("86", b"V_MJPEG") + rate + element("E0", size))
    body = element("1549A966", info) + element("1654AE6B", track)
    for index, t in enumerate(times):
        block = b"\x81\0\0\x80" + encoded(picture(index), "jpeg", quality=95)
        body += element("1F43B675", element("E7", whole(round(t * 1000))) + element("A3", block))
    path.write_bytes(element("1A45DFA3", header) + element("18538067", body))
    return path
