"""Plugins on disk: where they are, and what they say of themselves without a model."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fluvial.adapters import peft_config
from fluvial.adapters.errors import FluvialError, IntegrityError, ModelNotFoundError
from fluvial.engine import state_plugin

OWN = "plugins"  # the folder beside a model's weights that holds its own


@dataclass(frozen=True)
class PluginFolder:
    """What a plugin's files say. `rank` and `targets` are a LoRA's; `problem` is why its files cannot be used."""

    name: str
    kind: str
    path: Path
    base: str = ""
    rank: int | None = None
    targets: tuple[str, ...] = ()
    file_bytes: int = 0
    digest: str = ""
    problem: str = ""


def found_under(place: Path) -> Iterator[Path]:
    """The plugins at a place and below it, in order; a file that is no folder's only where it is the place itself.
    Errors: ModelNotFoundError where there is no such place."""
    if not place.exists():
        raise ModelNotFoundError(f"There is no {place}.", hint="Check the path.")
    if place.is_file():
        yield place
    for folder, below, files in os.walk(place):
        below.sort()
        if not {peft_config.CONFIG, state_plugin.FILE}.isdisjoint(files):
            yield Path(folder)


def described(path: Path) -> PluginFolder:
    """What config and header say; damage is told in `problem`."""
    file = state_plugin.file_of(path)
    about = PluginFolder(name_of(path), "lora" if file is None else "state", path)
    try:
        if file is None:
            config = peft_config.read_config(path)
            targets = (config.targets,) if isinstance(config.targets, str) else config.targets
            about = replace(about, base=config.base, rank=config.rank, targets=targets)
        else:
            with safe_open(file, "pt") as opened:
                said = opened.metadata() or {}
            if said.get("format") != state_plugin.KIND:
                raise IntegrityError(f"{file} is no state plugin.")
            about = replace(about, base=said.get("base", ""))
        size = sum(part.stat().st_size for part in _files(path))
        return replace(about, file_bytes=size, digest=digest_of(path))
    except (FluvialError, SafetensorError, OSError) as error:
        return replace(about, problem=str(error))


def name_of(place: Path) -> str:
    """A plugin's name where none is given."""
    return place.absolute().name if place.is_dir() else place.stem


def digest_of(place: Path) -> str:
    """The hash of a plugin's files; empty where one is missing."""
    digest = hashlib.blake2b(digest_size=20)
    for path in _files(place):
        if not path.is_file():  # reading it says what is wrong
            return ""
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _files(place: Path) -> list[Path]:
    state = state_plugin.file_of(place)
    return [state] if state is not None else [place / peft_config.CONFIG, place / peft_config.WEIGHTS]
