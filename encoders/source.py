"""What a media source is, before a decoder sees it: a regular local file or bytes, of a kind known by its first bytes.

Decoders get only kinds on this list. Names are not trusted (a text file can be called `.mp4`), and formats that make a
decoder open other files or addresses (playlists, concat lists, SDP, EPS) are never on it.
"""

from __future__ import annotations

import stat
from pathlib import Path

from fluvial.adapters.errors import MediaError

HEAD_BYTES = 4096
IMAGE_KINDS = frozenset({"jpeg", "png", "gif", "webp", "avif", "heic", "bmp", "tiff"})
VIDEO_KINDS = frozenset(
    {"mp4", "matroska", "avi", "flv", "asf", "mpegts", "mpeg", "ogg", "ivf", "mxf", "y4m", "annexb"}
)

_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"\x1aE\xdf\xa3", "matroska"),
    (b"FLV\x01", "flv"),
    (b"0&\xb2u\x8ef\xcf\x11", "asf"),
    (b"\0\0\x01\xba", "mpeg"),
    (b"\0\0\x01\xb3", "mpeg"),
    (b"OggS", "ogg"),
    (b"DKIF", "ivf"),
    (b"\x06\x0e+4\x02\x05\x01\x01", "mxf"),
    (b"YUV4MPEG2", "y4m"),
    (b"\0\0\0\x01", "annexb"),
)
_MP4_BOXES = frozenset({b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"sidx"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def sniff(head: bytes) -> str:
    """The kind of media that starts with these bytes (one of IMAGE_KINDS or VIDEO_KINDS), '' if none is known."""
    if head[4:8] == b"ftyp":
        size = min(max(int.from_bytes(head[:4], "big"), 12), len(head))
        brands = [head[8:12]] + [head[i : i + 4] for i in range(16, size - 3, 4)]
        if b"avif" in brands or b"avis" in brands:
            return "avif"
        return "heic" if brands[0] in _HEIF_BRANDS else "mp4"
    if head[:4] == b"RIFF":
        return {b"WEBP": "webp", b"AVI ": "avi"}.get(head[8:12], "")
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[4:8] in _MP4_BOXES:
        return "mp4"
    packets = head[:1880:188]  # MPEG-TS has no magic, but a sync byte every 188 bytes
    if len(packets) >= 3 and set(packets) == {0x47}:
        return "mpegts"
    return ""


def head_of(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:HEAD_BYTES]
    with source.open("rb") as stream:
        return stream.read(HEAD_BYTES)


def name_of(source: object) -> str:
    """How messages call the source."""
    if isinstance(source, bytes | bytearray | memoryview):
        return f"({memoryview(source).nbytes:,} bytes)"
    return str(source)


def local(source: str | Path | bytes | bytearray | memoryview, noun: str) -> Path | bytes:
    """The source as an absolute path of a readable, regular, non-empty file, or as non-empty bytes.

    Raises:
        MediaError: no such file, a directory, a pipe or device, no permission, empty, or an address (`http://...`).
    """
    what = f"Cannot read the {noun} {name_of(source)}."
    if isinstance(source, bytes | bytearray | memoryview):
        if not source:
            raise MediaError(what, "It is empty.", "Pass the bytes of a whole file.")
        return bytes(source)
    text = str(source)
    if isinstance(source, str) and "://" in text:
        raise MediaError(what, "Addresses are not opened here, only local files.", "Download it and pass its path.")
    try:
        path = Path(source).absolute()
        status = path.stat()
    except FileNotFoundError:
        raise MediaError(
            what, "There is no such file.", f"Check the path; it was looked for in {Path.cwd()}."
        ) from None
    except (OSError, ValueError) as error:
        raise MediaError(what, f"{error}.", "Check the path and its permissions.") from error
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(what, "It is a directory.", "Name a file in it.")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(what, "It is a pipe or a device, not a regular file.", "Save it to a file and pass that.")
    if status.st_size == 0:
        raise MediaError(what, "The file is empty (0 bytes).", "Copy or download it again.")
    try:
        path.open("rb").close()
    except OSError as error:
        raise MediaError(what, f"{error.strerror}.", "Check the permissions of the file.") from error
    return path


def unknown(source: object, noun: str, head: bytes) -> MediaError:
    """The error for a source of no known kind, saying what it looks like instead."""
    looks = "It is of a kind that is not known here."
    if b"\0" not in head:
        try:
            head.decode("utf-8")
            text = True
        except UnicodeDecodeError as error:
            text = len(head) == HEAD_BYTES and error.start >= HEAD_BYTES - 3  # the head may end inside a character
        if text:
            looks = "Its content is text, whatever its name says."
    known = "JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, HEIC"
    if noun == "video":
        known = "MP4, MOV, MKV, WebM, AVI, TS, FLV, WMV, animated GIF, WebP, PNG, AVIF"
    return MediaError(f"Cannot read the {noun} {name_of(source)}.", looks, f"Known kinds: {known}.")
