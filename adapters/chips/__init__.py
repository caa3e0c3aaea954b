"""Chips: a file each. Importing it registers the kernels that this machine can run on that chip.

Loading is explicit because it opens compiled libraries: without it every op runs its torch reference.
"""

from __future__ import annotations

import importlib
import pkgutil


def load() -> None:
    """Registers every chip's kernels; a second call changes nothing."""
    for chip in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{chip.name}")
