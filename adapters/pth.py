"""Weights saved by torch: RWKV's official `.pth`, and the `pytorch_model.bin` of older repositories.

Such a file is a pickle, which could run code: only torch's reader for plain tensors opens it. The file is mapped, not
read: a tensor's bytes are touched when it is reached.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fluvial.adapters import pages
from fluvial.adapters.errors import IntegrityError, UnsupportedError, UsageError
from fluvial.adapters.weights import Source, Weights


class PthWeights:
    """The tensors of one file that holds names and tensors and nothing else. Errors: IntegrityError."""

    def __init__(self, path: Path) -> None:
        self.folder, self._path = path.parent, path
        try:
            # before torch 1.6 the format was another one, which cannot be mapped
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:  # unpickling has no common base: the reader, the archive, the file system
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise IntegrityError(
                f"{path} is damaged, or wants to run code.",
                f"{first:.200}",
                "Use its safetensors, or download it again.",
            ) from error
        if not isinstance(found, dict) or not all(
            isinstance(n, str) and isinstance(t, Tensor) for n, t in found.items()
        ):
            raise IntegrityError(f"{path} holds more than named tensors.", hint="Export the weights alone.")
        self._tensors: dict[str, Tensor] = {name: tensor.detach() for name, tensor in found.items()}

    def names(self) -> list[str]:
        return list(self._tensors)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every name with its tensor's shape; nothing is read."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self._tensors.items():
            yield name, tensor
            self.release(tensor)

    def release(self, part: Tensor) -> None:
        pages.release([part], self._path)


def torch_file(place: Path) -> Path | None:
    """The file that torch saved: `place` itself, or the one in that folder; None where there is none.

    Errors: UsageError for several `.pth` files, UnsupportedError for a `pytorch_model.bin` in parts."""
    if place.is_file():
        return place if place.suffix in (".pth", ".bin") else None
    if (place / "pytorch_model.bin").is_file():
        return place / "pytorch_model.bin"
    if (place / "pytorch_model.bin.index.json").is_file():
        raise UnsupportedError(f"{place} has its weights in several .bin files.", hint="Use its safetensors.")
    found = sorted(place.glob("*.pth"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:5])
        raise UsageError(f"{place} holds {len(found)} models: {names}.", hint="Give the path of one of them.")
    return found[0] if found else None


def opened(place: Path) -> Source:
    """The weights of a folder, safetensors first, or of a file that torch saved."""
    safe = any((place / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))
    path = None if safe else torch_file(place)
    return Weights(place) if path is None else PthWeights(path)
