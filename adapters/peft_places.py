"""Where the tensors of a plugin go in a model, by the names that its family publishes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from fluvial.adapters.errors import IntegrityError
from fluvial.adapters.linear import Embedding, Linear
from fluvial.adapters.weights import Piece, Plan

OTHER_BASE = "The plugin was trained for another base model."
HEADS = ("lm_head", "head")
Modules = Mapping[str, tuple[nn.Module, Plan]]


@dataclass(frozen=True)
class Spot:
    """Where a published tensor goes: a parameter of `owner`, by `piece`; `lookup`: it is a table that is read."""

    owner: nn.Module
    leaf: str
    piece: Piece
    lookup: bool


def spots_of(names: list[str], modules: Modules) -> dict[str, list[Spot]]:
    """Where each published tensor goes. Errors: IntegrityError for those that the base does not have."""
    spots: dict[str, list[Spot]] = {}
    lacking, unused = list[str](), list[str]()
    for name in names:
        found = [(module, pieces) for module, rule in modules.values() if (pieces := rule(name)) is not None]
        spots[name] = [spot for module, pieces in found for piece in pieces if (spot := _spot(module, piece))]
        if not spots[name] and (tied := _tied_head(name, modules)) is not None:
            spots[name] = [tied]
        if not spots[name]:
            (unused if found and not any(pieces for _, pieces in found) else lacking).append(name)
    if lacking or unused:
        missing = sorted({name.rpartition(".")[0] for name in lacking or unused})
        shown = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        none = (
            "None of the plugin's modules is" if len(lacking) == len(names) else "Some of the plugin's modules are not"
        )
        raise IntegrityError(
            f"{none} in this model: {shown} ({len(missing)}).",
            "" if lacking else "The model has them on disk, but does not run them.",
            OTHER_BASE,
        )
    return spots


def _spot(module: nn.Module, piece: Piece) -> Spot | None:
    owner_name, _, leaf = piece.name.rpartition(".")
    try:
        owner = module.get_submodule(owner_name)
    except AttributeError:
        return None
    if isinstance(owner, Linear):  # a matrix may be stored in another format than as one parameter
        known = leaf == "weight" or (leaf == "bias" and owner.bias is not None)
    else:
        known = isinstance(getattr(owner, leaf, None), Tensor)
    return Spot(owner, leaf, piece, isinstance(owner, Embedding)) if known else None


def _tied_head(name: str, modules: Modules) -> Spot | None:
    """The head of a model whose head is its embedding: on disk there is none."""
    module, _, leaf = name.rpartition(".")
    if module not in HEADS or leaf != "weight":
        return None
    tables = (table for owner, _ in modules.values() for table in owner.children() if isinstance(table, Embedding))
    return next((Spot(table, leaf, Piece("head.weight"), False) for table in tables), None)
