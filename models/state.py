"""`State`: everything a decoder remembers, as a value outside the modules.

Named leaves: tensors of fixed size (recurrent; they never depend on the position) and tapes (attention rows; they
grow). No forward writes into a leaf, so a fork is a shallow copy. States are saved as safetensors with the
fingerprint of the model they belong to, written atomically, and restored bit for bit in another process.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fluvial.adapters.errors import IntegrityError, UsageError
from fluvial.models.tape import Tape

Leaf = Tensor | Tape
VERSION = "1"


@dataclass(frozen=True)
class State:
    """`leaves` by name ("3.S" is leaf S of block 3), `position[b]` tokens seen by row b, `model` a fingerprint.

    `shift[b]` is how far rotary positions run ahead of the count of tokens (negative after images, whose tokens share
    positions); () where no row was ever given positions of its own.
    """

    leaves: Mapping[str, Leaf]
    position: tuple[int, ...]
    model: str = ""
    shift: tuple[int, ...] = ()

    @property
    def batch(self) -> int:
        return len(self.position)

    @property
    def rotary(self) -> tuple[int, ...]:
        """The rotary position of each row's next token."""
        return tuple(p + s for p, s in zip(self.position, self.shift, strict=True)) if self.shift else self.position

    def fork(self) -> State:
        """An independent continuation; it shares memory until either one moves on."""
        return replace(self, leaves=dict(self.leaves))

    def of_block(self, block: int) -> dict[str, Leaf]:
        """The leaves of one block under their short names."""
        prefix = f"{block}."
        return {name[len(prefix) :]: leaf for name, leaf in self.leaves.items() if name.startswith(prefix)}

    def nbytes(self, kind: str = "all") -> int:
        """Bytes held: `kind` is "recurrent" (constant), "tape" (grows) or "all"."""
        wanted = {"all": (Tensor, Tape), "recurrent": (Tensor,), "tape": (Tape,)}[kind]
        return sum(leaf.nbytes for leaf in self.leaves.values() if isinstance(leaf, wanted))

    def pack(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The state as plain tensors and strings, for a file."""
        tensors: dict[str, Tensor] = {}
        tapes: dict[str, tuple[int, ...]] = {}
        for name, leaf in self.leaves.items():
            if isinstance(leaf, Tape):
                tensors[f"{name}.k"], tensors[f"{name}.v"] = leaf.rows
                tapes[name] = leaf.lengths
            else:
                tensors[name] = leaf
        about = {"model": self.model, "position": json.dumps(self.position), "tapes": json.dumps(tapes)}
        return tensors, about | ({"shift": json.dumps(self.shift)} if self.shift else {})

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], about: Mapping[str, str], model: str | None = None) -> State:
        """What `pack` gave; raises `IntegrityError` if it belongs to another model than `model`."""
        if model is not None and about["model"] != model:
            raise IntegrityError(
                "The saved state belongs to another model.",
                f"It was saved with {about['model'][:12] or 'none'}, this is {model[:12]}.",
                "Load the model, plugin and quantization that it was saved with.",
            )
        leaves: dict[str, Leaf] = dict(tensors)
        for name, lengths in json.loads(about["tapes"]).items():
            k, v = tensors[f"{name}.k"], tensors[f"{name}.v"]
            del leaves[f"{name}.k"], leaves[f"{name}.v"]
            leaves[name] = Tape.of(k, v, tuple(lengths))
        shift = tuple(json.loads(about.get("shift", "[]")))
        return cls(leaves, tuple(json.loads(about["position"])), about["model"], shift)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file atomically: the old file or the new one is whole at any moment."""
        tensors, about = self.pack()
        write_atomically(Path(path), tensors, about | {"format": "fluvial-state", "version": VERSION})

    @classmethod
    def restore(cls, path: str | Path, *, model: str | None = None) -> State:
        """Reads a saved state; raises `IntegrityError` if it is damaged or belongs to another model."""
        tensors, about = read_checked(Path(path), "fluvial-state", VERSION)
        return cls.unpack(tensors, about, model)


def write_atomically(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes safetensors beside `path`, syncs it, and renames it into place."""
    data = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise UsageError(f"Cannot write {path}.", str(error), "Choose a folder that exists and is writable.") from error
    os.close(handle)
    try:
        save_file(data, temporary, metadata=dict(about))
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_checked(path: Path, kind: str, version: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a file of that kind and version, or an `IntegrityError`."""
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
    if (about.get("format"), about.get("version")) != (kind, version):
        raise IntegrityError(
            f"{path} is not a {kind} file of version {version}.",
            f"It says {about.get('format')}, version {about.get('version')}.",
        )
    return tensors, about


def recurrent_dtype(dtype: torch.dtype) -> torch.dtype:
    """Recurrences run and are kept in fp32, or in fp64 for an fp64 model."""
    return torch.float64 if dtype == torch.float64 else torch.float32
