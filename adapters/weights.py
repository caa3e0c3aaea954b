"""Reading published weights: a file's tensors by name, one in memory at a time, each to its place in a module.

A family's `Plan` says where a tensor on disk goes: to one parameter of ours, to several (a fused matrix is split), or
nowhere (`[]`: known and not needed). `None` means another module's tensor, or an unknown one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fluvial.adapters import pages
from fluvial.adapters.errors import IntegrityError, ModelNotFoundError
from fluvial.adapters.formats import Format
from fluvial.adapters.linear import Linear

WIDE = ("A_log", "dt_bias", "D")  # decay gates stay in fp32 whatever a model computes in: half precision breaks them

STRIP = 32 << 20  # bytes of a large matrix that are packed at once

PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # others need scales to mean anything


def _whole(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Piece:
    """`take(tensor)` is the parameter `name`; several pieces may share one tensor. `optional`: left out where the
    module has no such parameter, as some releases hold what they do not use."""

    name: str
    take: Callable[[Tensor], Tensor] = _whole
    optional: bool = field(default=False, kw_only=True)


Plan = Callable[[str], "Sequence[Piece] | None"]


class Source(Protocol):
    """Anything that yields named tensors: `Weights`, or another file format's reader."""

    folder: Path

    def names(self) -> list[str]: ...
    def tensors(self) -> Iterator[tuple[str, Tensor]]: ...
    def release(self, part: Tensor) -> None: ...  # of the tensor that was reached: it need not stay in memory


class Weights:
    """The tensors of a folder: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

    Raises `ModelNotFoundError` for a missing file, `IntegrityError` for a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = folder / "model.safetensors.index.json"
        shards = ["model.safetensors"]
        if index.is_file():
            try:
                shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise IntegrityError(f"{index} is damaged.", repr(error), "Download the model again.") from error
        self._file_of: dict[str, Path] = {}
        self._reading = folder
        for shard in shards:
            # an index is data: it must not lead out of the folder
            if not isinstance(shard, str) or Path(shard).name != shard:
                raise IntegrityError(f"{index} names a file outside its folder: {shard!r:.80}.")
            path = folder / shard
            if not path.is_file():
                raise ModelNotFoundError(f"{folder} has no {shard}.", hint="Download the model again.")
            with open_safetensors(path) as file:
                self._file_of |= {name: path for name in file.keys()}  # noqa: SIM118

    def names(self) -> list[str]:
        return list(self._file_of)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every name with its tensor, read when it is reached; a mapping for each: pages count until theirs ends."""
        for name, path in self._file_of.items():
            self._reading = path
            with open_safetensors(path) as file:
                tensor = file.get_tensor(name)
            yield name, tensor

    def release(self, part: Tensor) -> None:
        pages.release([part], self._reading)


def fill(
    modules: Mapping[str, tuple[nn.Module, Plan]],
    source: Source,
    dtype: torch.dtype,
    formats: Mapping[str, Format] = MappingProxyType({}),
    keep: Callable[[str, Tensor], Tensor] = lambda key, tensor: tensor,
) -> None:
    """Gives every parameter of modules on the meta device its values, in `dtype`, while the file is read.

    The matrices that `formats` names ("decoder.head") are packed as they come, and `keep(key, tensor)` says where a
    module's tensors shall lie. Parts of a format that is installed already are taken as the file has them, mapped and
    not copied. Above the model's own bytes, one tensor at a time is in memory, of a matrix to be packed a strip. Raises
    `IntegrityError` naming the tensor for one that is missing, unknown or of the wrong shape; names are checked before
    anything is read.
    """
    for key, name, values in placed(modules, source):
        owner, _, leaf = name.rpartition(".")
        module = modules[key][0].get_submodule(owner)
        if leaf == "weight" and (format := formats.get(f"{key}.{owner}")) is not None:
            assert isinstance(module, Linear)
            parts = packed(values, format, name, source.release)
            module.install(format, {part: keep(key, tensor) for part, tensor in parts.items()})
        elif leaf in module._buffers:
            setattr(module, leaf, values)
        else:
            kept = torch.float32 if leaf in WIDE and dtype != torch.float64 else dtype
            # a copy, also where the dtype is right: the file's mapping must not stay open
            copied = torch.empty_like(values, dtype=kept, memory_format=torch.contiguous_format).copy_(values)
            setattr(module, leaf, nn.Parameter(keep(key, copied), requires_grad=False))


def packed(matrix: Tensor, format: Format, name: str, done: Callable[[Tensor], None]) -> dict[str, Tensor]:
    """The matrix in that format; `done` hears of each strip of rows that is not needed again. Errors say the name."""
    strips = matrix.split(max(1, STRIP // max(1, matrix[:1].nbytes)))
    try:
        if len(strips) == 1:
            return format.pack(matrix)
        d_out, d_in = matrix.shape
        parts, at = format.empty(d_out, d_in, None, matrix.device), 0
        for strip in strips:
            for part, values in format.pack(strip).items():
                parts[part][at : at + len(strip)] = values
            at += len(strip)
            done(strip)
        return parts
    except IntegrityError as error:
        raise IntegrityError(f"{name}: {error.what}", error.why, error.hint) from error


def placed(modules: Mapping[str, tuple[nn.Module, Plan]], source: Source) -> Iterator[tuple[str, str, Tensor]]:
    """Each module's key, the name of a parameter or buffer in it, and its values from the file, checked as `fill`
    says."""
    wanted: dict[str, dict[str, Tensor]] = {
        key: {**dict(module.named_parameters()), **dict(module.named_buffers())} for key, (module, _) in modules.items()
    }
    plan: dict[str, list[tuple[str, Piece]]] = {}
    unknown = []
    for name in source.names():
        found = [(key, pieces) for key, (_, rule) in modules.items() if (pieces := rule(name)) is not None]
        places = [(key, piece) for key, pieces in found for piece in pieces]
        plan[name] = [(key, piece) for key, piece in places if piece.name in wanted[key] or not piece.optional]
        if not found or any(piece.name not in wanted[key] for key, piece in plan[name]):
            unknown.append(name)
    given = {(key, piece.name) for places in plan.values() for key, piece in places}
    missing = [f"{key}.{name}" for key, names in wanted.items() for name in names if (key, name) not in given]
    for problem, names in (("has unknown", unknown), ("lacks", missing)):
        if names:
            shown = ", ".join(sorted(names)[:5]) + (" ..." if len(names) > 5 else "")
            raise IntegrityError(
                f"The checkpoint in {source.folder} {problem} tensors: {shown} ({len(names)}).",
                hint="Does config.json belong to these weights?",
            )
    for name, tensor in source.tensors():
        for key, piece in plan[name]:
            target = wanted[key][piece.name]
            allowed = PLAIN if isinstance(target, nn.Parameter) else (target.dtype,)
            if tensor.dtype not in allowed:
                raise IntegrityError(f"{name} is stored as {tensor.dtype}.", hint="Use the unquantized checkpoint.")
            values = piece.take(tensor)
            if values.shape != target.shape:
                raise IntegrityError(
                    f"{name} gives {piece.name} the shape {list(values.shape)}.",
                    f"The config asks for {list(target.shape)}.",
                    hint="Does config.json belong to these weights?",
                )
            yield key, piece.name, values


def open_safetensors(path: Path) -> safe_open:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise IntegrityError(f"{path} is damaged.", str(error), "Download the model again.") from error
