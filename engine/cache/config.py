"""`Cache`: how large the state cache may grow and where it may write; sizes as people write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fluvial.adapters.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class Cache:
    """`ram` and `disk_size` are bytes, or text like "1GB" or "512MiB"; `disk` is a folder that processes may share,
    None for memory only. `salt`: caches (and disk entries) with different salts never share anything."""

    ram: int | str = "1GB"
    disk: str | Path | None = None
    disk_size: int | str = "10GB"
    salt: str = ""

    def __post_init__(self) -> None:
        size_of(self.ram)
        size_of(self.disk_size)


def size_of(text: int | str) -> int:
    """Bytes. Errors: UsageError for what is not a positive size."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?\s*", str(text).lower())
    size = int(float(found[1]) * _UNITS[found[2]]) if found and not isinstance(text, bool) else 0
    if size < 1:
        raise UsageError(
            f"The size {text!r:.40} is not known.", "It must be positive.", 'For example "512MB" or "2GB".'
        )
    return size
