"""What a plugin's tensors make of one matrix of ours: low-rank pairs, DoRA's gains, biases, whole matrices."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fluvial.adapters.errors import IntegrityError, UnsupportedError
from fluvial.adapters.linear import Linear
from fluvial.adapters.lora import LoraPair
from fluvial.adapters.peft_file import Low
from fluvial.adapters.peft_places import OTHER_BASE, Spot
from fluvial.adapters.placement import Placement, picked, placed, vector_rows
from fluvial.adapters.weights import Piece

ROWS = 4096  # of a matrix that are widened at once
SAME, SAME_QUANTIZED = 1e-4, 0.2  # a copy of the base's may differ from it by that share of its norm


@dataclass
class Parts:
    """What is known so far of one door's change."""

    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    gain: Tensor | None = None
    bias: Tensor | None = None
    matrix: Tensor | None = None


def door_of(spot: Spot, low: Low, module: str) -> Linear:
    """The projection or table that LoRA on `module` changes. Errors: UnsupportedError, IntegrityError."""
    if not isinstance(spot.owner, Linear) or spot.leaf != "weight":
        raise UnsupportedError(f"The plugin changes {module}.", "LoRA is supported on projections and embeddings.")
    if spot.lookup != low.lookup:
        kinds = ("an embedding", "a projection")
        raise IntegrityError(
            f"{module} is {kinds[not spot.lookup]}, the plugin says {kinds[not low.lookup]}.", hint=OTHER_BASE
        )
    return spot.owner


def add_low(parts: Parts, door: Linear, low: Low, piece: Piece, module: str, wide: torch.dtype) -> None:
    """Adds LoRA on a published module to a door's change; norms are taken in `wide`."""
    A, B = low.A.to(wide), low.B.to(wide) * low.scale
    if low.lookup:  # the table is [in, out] of what PEFT calls A and B
        A, B = B.T, A.T
    place = placed(piece, B.shape[0], A.shape[1])
    ours_A, ours_B = place.low_rank(A, B)
    LoraPair(ours_A, ours_B).check(door.d_out, door.d_in)
    if low.magnitude is not None:
        whole = B.shape[0] if low.lookup else A.shape[1]
        gain = _gain(door, place, (ours_A, ours_B), low.magnitude.to(wide), whole, low.lookup, module)
        if low.lookup:
            ours_A = ours_A * (1 + gain)
        else:
            ours_B = ours_B * (1 + gain)[:, None]
        parts.gain = gain if parts.gain is None else parts.gain + gain
    if low.bias is not None:
        bias = picked(low.bias.to(wide) * low.scale, place.rows)
        parts.bias = bias if parts.bias is None else parts.bias + bias
    parts.pairs.append((ours_A, ours_B))


def _gain(
    door: Linear,
    place: Placement,
    pair: tuple[Tensor, Tensor],
    magnitude: Tensor,
    whole: int,
    lookup: bool,
    module: str,
) -> Tensor:
    """DoRA's m / |W + sBA| - 1 for each output, 0 for rows that are not this module's; norms go over all of the
    `whole` published columns (a table's rows)."""
    (A, B), (summed, kept) = pair, (place.rows, place.columns) if lookup else (place.columns, place.rows)
    if place.transposed or not torch.equal(summed.sort().values, torch.arange(whole)):
        raise UnsupportedError(f"The plugin has DoRA on {module}.", "Its matrix is stored in another direction here.")
    matrix, squares = door.matrix(), []
    for at in range(0, door.d_out, ROWS):
        block = (
            matrix[at : at + ROWS].to(A.dtype) + B[at : at + ROWS].to(matrix.device) @ A.to(matrix.device)
        ).square()
        squares.append(block.sum(0 if lookup else 1))
    norm = (torch.stack(squares).sum(0) if lookup else torch.cat(squares)).sqrt().to(A.device)
    return (picked(magnitude, kept) / norm.clamp(min=torch.finfo(norm.dtype).tiny) - 1).masked_fill(kept < 0, 0)


def put_whole(parts: dict[tuple[Linear, bool], Parts], spot: Spot, name: str, value: Tensor) -> None:
    """A tensor that takes the base's place."""
    owner = spot.owner
    if isinstance(owner, Linear) and spot.leaf == "weight":
        parts.setdefault((owner, spot.lookup), Parts()).matrix = spot.piece.take(value)
    elif isinstance(owner, Linear):
        found = parts.setdefault((owner, False), Parts())
        rows = vector_rows(spot.piece, len(value))
        if rows.shape != (owner.d_out,) or owner.bias is None:
            raise IntegrityError(f"{name} has {len(value)} values, {owner.d_out} are wanted.", hint=OTHER_BASE)
        base = owner.bias.detach().cpu().to(torch.promote_types(value.dtype, torch.float32))
        delta = (picked(value, rows).to(base.dtype) - base).masked_fill(rows < 0, 0)
        found.bias = delta if found.bias is None else found.bias + delta
    else:
        check_same(spot, name, value)


def check_same(spot: Spot, name: str, value: Tensor) -> None:
    """Raises unless the plugin's tensor is the base's."""
    owner, matrix, most = spot.owner, False, SAME
    if isinstance(owner, Linear) and spot.leaf == "weight":
        matrix, base, most = True, owner.matrix(), SAME if owner.format.trainable else SAME_QUANTIZED
    else:
        base = getattr(owner, spot.leaf)
    base, ours = base.detach().cpu(), spot.piece.take(value)
    if ours.shape != base.shape:
        raise IntegrityError(
            f"{name} in the plugin gives {list(ours.shape)}, the model has {list(base.shape)}.",
            hint="The plugin was trained for another base model, or with tokens added to its vocabulary.",
        )
    narrow = min(base.dtype, ours.dtype, key=lambda dtype: dtype.itemsize)  # either may have been rounded
    ours, base = ours.to(narrow).float(), base.to(narrow).float()
    if (ours - base).norm() <= most * base.norm():
        return
    if matrix:
        raise IntegrityError(f"{name} in the plugin is not the model's.", "It was trained for another base model.")
    raise UnsupportedError(
        f"The plugin changes {name}.", "Only projections, embeddings and their biases can change.", "Train it without."
    )
