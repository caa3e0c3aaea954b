"""PEFT folders as plugins: LoRA, DoRA, biases, whole modules, each put where the family's plan puts the weights.

PEFT names a tensor after the published module that it changes, and a plan says where that module's matrix goes: whole,
split, fused or permuted. Nothing here knows a family. Everything is checked before anything is attached.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fluvial.adapters.errors import IntegrityError
from fluvial.adapters.linear import Embedding, Linear
from fluvial.adapters.lora import LookupPair, LoraPair, Replacement, Update
from fluvial.adapters.peft_config import PeftConfig, read_config
from fluvial.adapters.peft_file import PeftFile, read_file
from fluvial.adapters.peft_parts import Parts, add_low, check_same, door_of, put_whole
from fluvial.adapters.peft_places import OTHER_BASE, Modules, spots_of


@dataclass(frozen=True)
class Change:
    """One door's update; `lookup`: of the rows that a table gives out, not of its projection."""

    door: Linear
    lookup: bool
    update: Update


@dataclass(frozen=True)
class Lora:
    """A PEFT plugin that fits a model; `attach` makes it act where a route names `key`."""

    config: PeftConfig
    changes: tuple[Change, ...]
    modules: tuple[str, ...]
    parameters: int
    warnings: tuple[str, ...]

    def attach(self, key: str) -> None:
        for change in self.changes:
            if change.lookup:
                assert isinstance(change.door, Embedding)
                change.door.attach_lookup(key, change.update)
            else:
                change.door.attach(key, change.update)

    def detach(self, key: str) -> None:
        for change in self.changes:
            change.door.detach(key)


def read(folder: Path, modules: Modules, dtype: torch.dtype) -> Lora:
    """The plugin in `folder` for these modules, its tensors in `dtype`; nothing is attached yet.

    Raises `ModelNotFoundError`, `UnsupportedError` or `IntegrityError` (damage, another base model, no target found).
    """
    config = read_config(folder)
    file = read_file(folder, config)
    try:
        changes = tuple(
            _finished(door, lookup, found, dtype) for (door, lookup), found in _parts(file, modules, dtype).items()
        )
    except (RuntimeError, ValueError, IndexError) as error:  # a plan's way with a matrix of another shape
        raise IntegrityError("The plugin's tensors do not fit this model.", f"{error!r:.200}", OTHER_BASE) from error
    if not changes:
        raise IntegrityError("The plugin changes nothing.", "It holds no LoRA matrix, bias or module.")
    listed = () if isinstance(config.targets, str) or config.excluded else config.targets
    unused = [
        f"target_modules names {name}, of which the plugin holds nothing."
        for name in listed
        if not any(module == name or module.endswith(f".{name}") for module in file.low)
    ]
    return Lora(config, changes, tuple(sorted({*file.low, *file.whole})), file.parameters, tuple(unused))


def _parts(file: PeftFile, modules: Modules, dtype: torch.dtype) -> dict[tuple[Linear, bool], Parts]:
    """The changes by door, and whether they are of its look-ups."""
    spots = spots_of([*(f"{module}.weight" for module in file.low), *file.whole, *file.copies], modules)
    parts: dict[tuple[Linear, bool], Parts] = {}
    wide = torch.promote_types(dtype, torch.float32)
    for module, low in file.low.items():
        for spot in spots[f"{module}.weight"]:
            door = door_of(spot, low, module)
            add_low(parts.setdefault((door, low.lookup), Parts()), door, low, spot.piece, module, wide)
    for name, value in file.whole.items():
        for spot in spots[name]:
            put_whole(parts, spot, name, value)
    for name, value in file.copies.items():
        for spot in spots[name]:
            check_same(spot, name, value)
    return parts


def _finished(door: Linear, lookup: bool, parts: Parts, dtype: torch.dtype) -> Change:
    device = next(iter(door.parts.values())).device

    def here(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype).contiguous()

    gain, bias = (None if vector is None else here(vector) for vector in (parts.gain, parts.bias))
    update: Update
    if parts.matrix is not None:
        if parts.pairs:
            raise IntegrityError("The plugin both replaces a module and adds LoRA to it.", hint="Get the plugin again.")
        update = Replacement(here(parts.matrix), bias)
    else:
        A = torch.cat([pair[0] for pair in parts.pairs] or [torch.zeros(0, door.d_in)])
        B = torch.cat([pair[1] for pair in parts.pairs] or [torch.zeros(door.d_out, 0)], 1)
        if lookup:
            update = LookupPair(here(B).T, here(A.T), gain=gain)
        else:
            A, B = _stored(here(A), here(B.T))
            update = LoraPair(A, B.T, gain=gain, bias=bias)  # B by columns: kernels/low_rank.cpp reads it so
    update.check(door.d_out, door.d_in)
    return Change(door, lookup, update)


def _stored(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in bf16 where that changes no value, as in most files: a token reads all of them."""
    narrow = tuple(tensor.bfloat16() for tensor in tensors)
    same = all(torch.equal(a.to(b.dtype), b) for a, b in zip(narrow, tensors, strict=True))
    return narrow if same else tensors
