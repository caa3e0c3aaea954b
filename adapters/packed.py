"""Packed checkpoints: the stored parts of every matrix in one safetensors file, under our own names, and a manifest in
config.json. Loading maps the file: nothing is converted, and pages are read when they are used.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.adapters.errors import IntegrityError, UnsupportedError
from fluvial.adapters.formats import DENSE, Format, by_name
from fluvial.adapters.recipes import Recipe, alike, matrices
from fluvial.adapters.weights import Piece, Plan, Source, Weights, open_safetensors, packed, placed

KEY, VERSION, FILE = "fluvial_quant", 1, "model.safetensors"
ALIGNED = 64  # bytes: a part begins on a cache line
NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8", torch.int8: "I8"}


@dataclass(frozen=True)
class Manifest:
    """Which recipe packed a folder, and the format of each matrix; those not named are dense."""

    recipe: str
    formats: Mapping[str, Format]

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Manifest | None:
        """What a config.json says; None for a plain checkpoint. Errors: IntegrityError, UnsupportedError."""
        if (given := config.get(KEY)) is None:
            return None
        try:
            version, recipe, formats = given["version"], str(given["recipe"]), dict(given["formats"])
            named = {str(name): by_name(format) for name, format in formats.items()}
        except (KeyError, TypeError, ValueError) as error:
            hint = "Pack the model again."
            raise IntegrityError(f"The config's {KEY} is damaged.", f"{error!r:.200}", hint) from error
        if version != VERSION:
            raise UnsupportedError(f"The model was packed as version {version!r:.20}.", hint="Pack the model again.")
        return cls(recipe, named)

    def under(self, folder: Path, wanted: Recipe | None, modules: Mapping[str, nn.Module]) -> Manifest:
        """The same parts, multiplied as a recipe says that stores what this one does. Errors: UnsupportedError where
        another is wanted."""
        if wanted is None or wanted.name == self.recipe:
            return self
        if not alike(wanted.name, self.recipe):
            raise UnsupportedError(
                f"{folder} is packed as {self.recipe}, not {wanted.name}.",
                "What packing lost cannot be brought back.",
                "Load it without quant, or pack the original again.",
            )
        chosen, formats = formats_of(wanted, modules), dict(self.formats)
        for name, format in formats.items():
            if name in chosen and alike(chosen[name].name, format.name):
                formats[name] = chosen[name]
        return Manifest(wanted.name, formats)

    def as_json(self) -> dict[str, Any]:
        formats = {name: format.name for name, format in self.formats.items()}
        return {"version": VERSION, "recipe": self.recipe, "formats": formats}


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is a packed folder's."""
    return config.get(KEY) is not None


def formats_of(recipe: Recipe, modules: Mapping[str, nn.Module]) -> dict[str, Format]:
    """The format that the recipe gives each matrix by its full name, without the dense ones. Errors:
    UnsupportedError."""
    chosen = {name: recipe.format(name, layer) for name, layer in matrices(modules).items()}
    return {name: format for name, format in chosen.items() if format is not DENSE}


def prepare(modules: Mapping[str, nn.Module], formats: Mapping[str, Format]) -> None:
    """Gives modules on the meta device the empty parts of those formats. Errors: IntegrityError for a matrix that there
    is not, UnsupportedError for a format that does not fit."""
    layers = matrices(modules)
    if unknown := sorted(formats.keys() - layers.keys()):
        raise IntegrityError(f"The config's {KEY} names {unknown[0]:.80}, which the model has not.")
    for name, format in formats.items():
        layer = layers[name]
        layer.install(format, format.empty(layer.d_out, layer.d_in, None, "meta"))


def own_plan(key: str) -> Plan:
    """Where a packed file's tensors go: our names after the module's key."""

    def rule(name: str) -> list[Piece] | None:
        return [Piece(name.removeprefix(f"{key}."))] if name.startswith(f"{key}.") else None

    return rule


class Packed(Weights):
    """The tensors of a packed folder: one mapping of its file, which lasts as long as one of them is in use."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        with open_safetensors(self.folder / FILE) as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def write(
    path: Path, modules: Mapping[str, tuple[nn.Module, Plan]], source: Source, formats: Mapping[str, Format]
) -> None:
    """Packs the source's matrices into a file, tensor by tensor; the rest is written in fp32, which holds it exactly.
    `modules` are on the meta device. Errors: as `weights.fill`."""
    shapes = stored({key: module for key, (module, _) in modules.items()}, formats)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places, at = dict[str, int](), 0
    # whole multiples of the alignment first, because the format allows no gaps
    for name in sorted(shapes, key=lambda name: (shapes[name].nbytes % ALIGNED != 0, name)):
        shape, places[name] = shapes[name], at
        at += shape.nbytes
        header[name] = {"dtype": NAMES[shape.dtype], "shape": list(shape.shape), "data_offsets": [places[name], at]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNED)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
        for key, name, values in placed(modules, source):
            owner, _, leaf = f"{key}.{name}".rpartition(".")
            quantized = leaf == "weight" and owner in formats
            parts = packed(values, formats[owner], name, source.release) if quantized else {leaf: values.float()}
            for part, tensor in parts.items():
                file.seek(8 + len(text) + places[f"{owner}.{part}"])
                tensor.contiguous().flatten().view(torch.uint8).numpy().tofile(file)
        file.flush()
        os.fsync(file.fileno())


def stored(modules: Mapping[str, nn.Module], formats: Mapping[str, Format]) -> dict[str, Tensor]:
    """Every tensor that those modules hold in those formats, by its full name and on the meta device; what is not
    packed in fp32."""
    layers, tensors = matrices(modules), dict[str, Tensor]()
    for key, module in modules.items():
        for name, parameter in module.named_parameters():
            owner, _, leaf = f"{key}.{name}".rpartition(".")
            parts = {leaf: torch.empty_like(parameter, dtype=torch.float32, device="meta")}
            if leaf == "weight" and owner in formats:
                parts = formats[owner].empty(layers[owner].d_out, layers[owner].d_in, None, "meta")
            tensors |= {f"{owner}.{part}": tensor for part, tensor in parts.items()}
    return tensors
