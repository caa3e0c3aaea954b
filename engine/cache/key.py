"""What must be equal before anything is shared: models, plugins, settings, tenants, and the bytes of media."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fluvial.adapters.errors import FluvialError
from fluvial.encoders.frame import Frame
from fluvial.encoders.image import read_image
from fluvial.encoders.source import local
from fluvial.engine.media import Image, Medium, Video
from fluvial.engine.model import Model

Key = tuple[tuple[str, str], ...]  # (what, its value): equal in all of them, or nothing is shared
VERSION = "1"  # of how states are computed and kept
_DECODERS = ("pillow", "opencv-python", "av", "pillow-heif")


def key_of(model: Model, route: Mapping[str, float] | None, tenant: str, salt: str) -> Key:
    """All that a state depends on besides what was read."""
    return (
        ("weights", model.decoder.fingerprint()),
        ("quantization", model.recipe or ""),
        ("dtype", str(model.decoder.dtype)),
        ("device", str(model.decoder.device)),
        ("memory", model.decoder.state_dtype),
        ("template", digest(model.template.source if model.template else "")),
        ("tokenizer", digest(repr((type(model.tokenizer).__name__, model.tokenizer.controls, model.tokenizer.names)))),
        ("encoder", model.fingerprint()),  # with the tower, its settings and the processor's
        ("plugins", plugins_key(route)),
        ("tenant", tenant),
        ("salt", salt),
        ("version", VERSION),
    )


def plugins_key(route: Mapping[str, float] | None) -> str:
    """Content and strength of each plugin, in the order in which they are added."""
    return " ".join(f"{content}:{float(strength)!r}" for content, strength in (route or {}).items())


def differing(key: Key, others: list[Key]) -> str:
    """In what `key` differs from the most similar of `others`."""
    apart = ([what for (what, value), (_, its) in zip(key, other, strict=True) if value != its] for other in others)
    _, names = min((len(names), names) for names in apart)
    return ", ".join(names)


def medium_key(key: Key, medium: Medium | list[Frame]) -> str:
    """What identifies the embeddings of a medium, known before anything is decoded: the bytes of a file (or the pixels
    and times of frames), how it is to be read, by which encoder. Errors: as reading it."""
    whole = hashlib.blake2b(repr((key, _versions())).encode(), digest_size=20)
    if isinstance(medium, Image | Video):
        source = medium.source
        if isinstance(medium, Video):
            whole.update(repr(("video", medium.fps, medium.frames, medium.max_frames)).encode())
        else:
            whole.update(repr(("image", medium.max_pixels)).encode())
        if isinstance(source, str | Path | bytes | bytearray | memoryview):
            place = local(source, "video" if isinstance(medium, Video) else "image")
            if isinstance(place, bytes):
                whole.update(hashlib.blake2b(place).digest())
            else:
                with place.open("rb") as file:
                    whole.update(hashlib.file_digest(file, "blake2b").digest())
        elif isinstance(medium, Image):  # a picture in memory
            _add(whole, read_image(source, max_pixels=medium.max_pixels))
    else:
        for frame in medium if isinstance(medium, list) else [medium]:
            _add(whole, frame)
    return whole.hexdigest()


def file_stamp(medium: Medium | list[Frame]) -> object:
    """Changes when the file behind a medium is written to; None where there is no file."""
    source = medium.source if isinstance(medium, Image | Video) else None
    if not isinstance(source, str | Path):
        return None
    try:
        status = Path(source).stat()
    except (OSError, ValueError, FluvialError):
        return "gone"
    return status.st_ino, status.st_size, status.st_mtime_ns


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def _add(whole: hashlib.blake2b, frame: Frame) -> None:
    whole.update(repr(("frame", frame.rgb.shape, frame.t)).encode())
    whole.update(frame.rgb.tobytes())


@cache
def _versions() -> tuple[str, ...]:
    """What decodes files: another version may give other pixels."""
    found = []
    for package in _DECODERS:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)
