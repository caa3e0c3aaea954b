"""State files: safetensors with a checksum over all of it, written so that a kill at any moment loses nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fluvial.adapters.errors import IntegrityError, UsageError

VERSION = "2"  # of every kind of state file


def write_atomically(path: Path, kind: str, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes safetensors with a checksum beside `path`, syncs them, and renames them into place: killed at any moment,
    it leaves the old file or the new one."""
    about = {**about, "format": kind, "version": VERSION}
    data = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise UsageError(f"Cannot write {path}.", str(error), "Choose a folder that exists and is writable.") from error
    os.close(handle)
    try:
        save_file(data, temporary, metadata={**about, "digest": _digest(data, about)})
        _sync(temporary)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # not every system opens folders; then the new name may come a little later
            _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"Cannot write {path}.", str(error), "Choose a place with room; nothing was changed."
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _sync(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(json.dumps(sorted(about.items())).encode(), digest_size=20)
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_checked(path: Path, kinds: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a file of one of these kinds, the checksum as "digest", or an IntegrityError."""
    if not path.is_file():
        raise IntegrityError(f"No saved state at {path}.", hint="Check the path.")
    try:
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError(
            f"{path} is damaged.", str(error), "Restore it from a copy; nothing was loaded."
        ) from error
    if about.get("format") not in kinds or about.get("version") != VERSION:
        raise IntegrityError(
            f"{path} is not a {' or '.join(kinds)} file of version {VERSION}.",
            f"It says {about.get('format')}, version {about.get('version')}.",
        )
    if about.get("digest") != _digest(tensors, {key: text for key, text in about.items() if key != "digest"}):
        raise IntegrityError(
            f"{path} is damaged.", "Its checksum does not fit.", "Restore it from a copy; nothing was loaded."
        )
    return tensors, about
