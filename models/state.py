"""`State`: everything a decoder remembers, as a value outside the modules.

Named leaves: tensors of fixed size (recurrent; they never depend on the position), maybe rounded, and tapes (attention
rows; they grow). No forward writes into a leaf, so a fork is a shallow copy. States are saved as safetensors with the
fingerprint of the model they belong to, written atomically, and restored bit for bit in another process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fluvial.adapters.errors import IntegrityError
from fluvial.adapters.fingerprint import Fingerprint
from fluvial.models.rounded import Rounded
from fluvial.models.state_file import read_checked, write_atomically
from fluvial.models.tape import Tape

Leaf = Tensor | Rounded | Tape
KIND = "fluvial-state"


@dataclass(frozen=True)
class State:
    """`leaves` by name ("3.S" is leaf S of block 3), `position[b]` tokens seen by row b, `model` a fingerprint, `dtype`
    what memories are kept in (`rounded.STATE_DTYPES`).

    `shift[b]` is how far rotary positions run ahead of the count of tokens (negative after images, whose tokens share
    positions); () where no row was ever given positions of its own.
    """

    leaves: Mapping[str, Leaf]
    position: tuple[int, ...]
    model: str | Fingerprint = ""
    shift: tuple[int, ...] = ()
    dtype: str = "fp32"

    @property
    def batch(self) -> int:
        return len(self.position)

    @property
    def rotary(self) -> tuple[int, ...]:
        """The rotary position of each row's next token."""
        return tuple(p + s for p, s in zip(self.position, self.shift, strict=True)) if self.shift else self.position

    def fork(self) -> State:
        """An independent continuation; it shares memory until either one moves on."""
        return replace(self, leaves=copy(self.leaves))

    def equals(self, other: State) -> bool:
        """Whether all of it is the same, bit for bit."""
        (mine, about), (its, told) = self.pack(), other.pack()
        same = about == told and mine.keys() == its.keys()
        return same and all(torch.equal(tensor, its[name]) for name, tensor in mine.items())

    def nbytes(self, kind: str = "all") -> int:
        """Bytes held: `kind` is "recurrent" (constant), "tape" (grows) or "all"."""
        wanted = {"all": (Tensor, Rounded, Tape), "recurrent": (Tensor, Rounded), "tape": (Tape,)}[kind]
        return sum(leaf.nbytes for leaf in self.leaves.values() if isinstance(leaf, wanted))

    def storages(self) -> dict[int, int]:
        """Bytes of each block of memory by an id: summed over several states, what they share counts once."""
        found: dict[int, int] = {}
        for leaf in self.leaves.values():
            if isinstance(leaf, Tape):
                found |= leaf.storages()
                continue
            blocks = [t.untyped_storage() for t in (leaf.parts.values() if isinstance(leaf, Rounded) else (leaf,))]
            found |= {block._cdata: block.nbytes() for block in blocks}
        return found

    def pack(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The state as plain tensors and strings, for a file."""
        tensors: dict[str, Tensor] = {}
        tapes: dict[str, tuple[int, ...]] = {}
        rounded: dict[str, tuple[tuple[int, ...], str]] = {}
        for name, leaf in self.leaves.items():
            if isinstance(leaf, Tape):
                tensors[f"{name}.k"], tensors[f"{name}.v"] = leaf.stored
                tapes[name] = leaf.lengths
            elif isinstance(leaf, Rounded):
                tensors |= {f"{name}.{part}": tensor for part, tensor in leaf.parts.items()}
                rounded[name] = leaf.shape, str(leaf.wide).removeprefix("torch.")
            else:
                tensors[name] = leaf
        about = {"model": str(self.model), "position": json.dumps(self.position), "tapes": json.dumps(tapes)}
        if rounded:
            about |= {"dtype": self.dtype, "rounded": json.dumps(rounded)}
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
        dtype = about.get("dtype", "fp32")
        for name, (shape, precision) in json.loads(about.get("rounded", "{}")).items():
            parts = {key.rpartition(".")[2]: part for key, part in tensors.items() if key.rpartition(".")[0] == name}
            for part in parts:
                del leaves[f"{name}.{part}"]
            leaves[name] = Rounded(dtype, parts, tuple(shape), getattr(torch, precision))
        shift = tuple(json.loads(about.get("shift", "[]")))
        return cls(leaves, tuple(json.loads(about["position"])), about["model"], shift, dtype)

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file atomically: the old file or the new one is whole at any moment."""
        tensors, about = self.pack()
        write_atomically(Path(path), KIND, tensors, about)

    @classmethod
    def restore(cls, path: str | Path, *, model: str | None = None) -> State:
        """Reads a saved state; raises `IntegrityError` if it is damaged or belongs to another model."""
        tensors, about = read_checked(Path(path), (KIND,))
        return cls.unpack(tensors, about, model)


def wide(leaf: Leaf) -> Tensor | Tape:
    """A leaf as a mixer reads it."""
    return leaf.values if isinstance(leaf, Rounded) else leaf


def by_block(leaves: Mapping[str, Leaf], blocks: int) -> list[dict[str, Leaf]]:
    """The leaves of each block under their short names."""
    own = [dict[str, Leaf]() for _ in range(blocks)]
    for name, leaf in leaves.items():
        block, _, short = name.partition(".")
        own[int(block)][short] = leaf
    return own


def recurrent_dtype(dtype: torch.dtype) -> torch.dtype:
    """Recurrences run and are kept in fp32, or in fp64 for an fp64 model."""
    return torch.float64 if dtype == torch.float64 else torch.float32
