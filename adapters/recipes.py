"""Recipes: which storage format each class of matrix gets. Everything that is no matrix (norms, A_log, dt, D, decay
bases, convolution taps) keeps the precision that the model computes in, or fp32.

A matrix belongs to the first class whose predicate holds. Gates and decays stay dense: their errors add up over
thousands of tokens in a state. A width that a format's groups do not divide gets the largest group that does, or
stays dense.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.adapters.formats import DENSE, Format, by_name
from fluvial.adapters.formats.grouped import GROUPS, Grouped
from fluvial.adapters.linear import Embedding, Linear

TOWER = "vision"  # the tower's key beside the decoder's, where matrices are named


def _ends(pattern: str) -> Callable[[str, Linear], bool]:
    """Whether the last parts of the name match."""
    compiled = re.compile(rf"(.*\.)?({pattern})")
    return lambda name, _: compiled.fullmatch(name) is not None


CLASSES: dict[str, Callable[[str, Linear], bool]] = {
    "tower": lambda name, _: name.startswith(f"{TOWER}."),
    "embedding": lambda _, layer: isinstance(layer, Embedding),  # a tied head is the same matrix
    "head": _ends("head"),
    "gate": _ends(r"in_proj_[ab]|dt_proj|[wavg]_lora\.[AB]"),
    "select": _ends("x_proj"),  # Mamba's B, C and low-rank step
    "key_value": lambda name, layer: _ends("[kv]_proj")(name, layer) and layer.d_out < layer.d_in,  # shared by heads
    "in": _ends("in_proj|in_proj_qkv|in_proj_z|[rqkv]_proj|join"),
    "out": _ends("o_proj|out_proj"),
    "up": _ends("gate_proj|up_proj|key"),
    "down": _ends("down_proj|value"),
}


@dataclass(frozen=True)
class Recipe:
    """`formats` by class; `dtype`: what the model computes in, if the caller does not say."""

    name: str
    formats: Mapping[str, str]
    dtype: torch.dtype = torch.float32

    def format(self, name: str, layer: Linear) -> Format:
        """The format of the matrix `name` ("decoder.blocks.0.mixer.q_proj"). Errors: UnsupportedError."""
        return fitting(self.formats[class_of(name, layer)], layer.d_in)


_INT8 = dict.fromkeys(CLASSES, "int8-g128") | {"gate": "dense"}
_INT4 = _INT8 | dict.fromkeys(("in", "up", "down"), "int4-g32")
_SMALL = _INT8 | dict.fromkeys(("in", "key_value", "out", "up", "down"), "int4-g128")
_SMALL |= {"embedding": "int4-g32", "head": "int4-g32", "gate": "int8-g32"}
ROUNDED = "-a8"  # ends the names of recipes and formats that round what they multiply to 8 bits (formats/grouped.py)


def alike(one: str, other: str) -> bool:
    """Whether two recipes or two formats of those names store the same bytes."""
    return one.removesuffix(ROUNDED) == other.removesuffix(ROUNDED)


def _rounding(of: Recipe) -> Recipe:
    """The same bytes, multiplied sooner; gates keep what they multiply."""
    formats = {kind: f if kind == "gate" else f + ROUNDED for kind, f in of.formats.items()}
    return Recipe(of.name + ROUNDED, formats, of.dtype)


RECIPES = {
    "int8": Recipe("int8", _INT8),
    "int4": Recipe("int4", _INT4),
    "int4-small": Recipe("int4-small", _SMALL),
    "bf16": Recipe("bf16", dict.fromkeys(CLASSES, "bf16"), torch.bfloat16),
    "fp16": Recipe("fp16", dict.fromkeys(CLASSES, "fp16"), torch.float16),
    "fp32": Recipe("fp32", dict.fromkeys(CLASSES, "fp32"), torch.float32),
}
RECIPES |= {one.name: one for one in map(_rounding, [r for r in RECIPES.values() if r.name.startswith("int")])}


def recipe(name: str) -> Recipe:
    """The recipe of that name, or a `UsageError` that lists them."""
    if name not in RECIPES:
        raise UsageError(f"Unknown recipe '{name}'.", hint=f"One of {', '.join(RECIPES)}.")
    return RECIPES[name]


def class_of(name: str, layer: Linear) -> str:
    """The class of a matrix. Errors: `UnsupportedError` for one that the table does not know."""
    for kind, holds in CLASSES.items():
        if holds(name, layer):
            return kind
    raise UnsupportedError(f"No recipe says how to store {name}.", hint="Load the model without quant.")


def fitting(wanted: str, d_in: int) -> Format:
    """The wanted format, or the nearest that a matrix with `d_in` columns can have."""
    format = by_name(wanted)
    if not isinstance(format, Grouped) or d_in % format.group == 0:
        return format
    fits = [group for group in GROUPS if group < format.group and d_in % group == 0]
    return by_name(wanted.replace(f"g{format.group}", f"g{fits[0]}")) if fits else DENSE


def matrices(modules: Mapping[str, nn.Module]) -> dict[str, Linear]:
    """Every matrix of the modules by its full name, each once."""
    return {
        f"{key}.{name}": layer
        for key, module in modules.items()
        for name, layer in module.named_modules()
        if isinstance(layer, Linear)
    }


def formats_in(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """The format of each matrix that is not dense, by its full name."""
    return {name: layer.format.name for name, layer in matrices(modules).items() if layer.format is not DENSE}


def bytes_by_format(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Bytes in memory by format; "dense" is what has the model's precision, or fp32."""
    totals: Counter[str] = Counter()
    for layer in matrices(modules).values():
        totals[layer.format.name] += sum(part.nbytes for part in layer.parts.values())
    every = sum(tensor.nbytes for module in modules.values() for tensor in (*module.parameters(), *module.buffers()))
    totals["dense"] += every - totals.total()
    return dict(totals)


def count(modules: Mapping[str, nn.Module]) -> int:
    """How many parameters the modules have, however they are stored."""
    layers = matrices(modules).values()
    packed = sum(layer.d_in * layer.d_out for layer in layers if not layer.format.trainable)
    return packed + sum(parameter.numel() for module in modules.values() for parameter in module.parameters())
