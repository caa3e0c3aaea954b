"""Packing: a checkpoint's matrices stored once as a recipe says, in a folder that loads by mapping its file."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.adapters.packed import FILE, KEY, Manifest, formats_of, write
from fluvial.adapters.pth import opened
from fluvial.adapters.recipes import recipe
from fluvial.engine.loading import filled_modules, read_shapes
from fluvial.engine.resolve import SMALL_FILES, resolve
from fluvial.models import ahead

COPIED = (*SMALL_FILES, "LICENSE*", ahead.FILE)
INDEX = "*.safetensors.index.json"


def pack(name: str | Path, target: str | Path, quant: str, *, offline: bool = False) -> Path:
    """Writes model `name`, packed by the recipe `quant`, into the new folder `target`: all of it or nothing.

    Above one tensor nothing is held in memory. Errors: UsageError for a target that exists or cannot be written and for
    an unknown recipe, UnsupportedError for a model that is packed already; others as `load_model`.
    """
    chosen, folder = recipe(quant), Path(target).expanduser()
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"{folder} exists.", "Packing never overwrites.", "Choose another folder, or remove it first.")
    if not folder.absolute().parent.is_dir():
        raise UsageError(f"There is no folder {folder.absolute().parent}.", hint="Make it first, or choose another.")
    place = resolve(name, offline=offline)
    shapes = read_shapes(place)
    if (manifest := Manifest.read(shapes.config)) is not None:
        raise UnsupportedError(f"{name} is packed already, as {manifest.recipe}.", hint="Pack the original.")
    source = opened(place)
    modules = filled_modules(shapes, source.names())
    formats = formats_of(chosen, {key: module for key, (module, _) in modules.items()})
    temporary = folder.absolute().with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        _copy(place if place.is_dir() else place.parent, temporary)
        manifest = Manifest(chosen.name, formats)
        (temporary / "config.json").write_text(json.dumps(shapes.config | {KEY: manifest.as_json()}, indent=1), "utf-8")
        write(temporary / FILE, modules, source, formats)
        os.rename(temporary, folder)
    except OSError as error:
        raise UsageError(f"Cannot write {folder}.", f"{error}.", "Is there space, and may you write there?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _copy(source: Path, target: Path) -> None:
    """The small files beside the weights: tokenizer, template, settings, licence."""
    for path in sorted({path for pattern in COPIED for path in source.glob(pattern)}):
        if path.is_file() and not path.match(INDEX):
            shutil.copyfile(path, target / path.name)
