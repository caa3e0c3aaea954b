"""Where the rows and columns of a published matrix land in one of ours, by the same plan that loads its weights.

A plan's `take` is any function of a tensor. It is applied to the positions of a matrix instead of to its values: what
comes out says which published row and column each of our entries is. What is not made of whole rows and columns, or
computes with the values, is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.weights import Piece

LARGEST = 1 << 22  # positions that are tried one by one; larger matrices by their edges
_SHIFT = 3  # added to positions: a take that scales, rounds or negates does not pass it on


@dataclass(frozen=True)
class Placement:
    """Our row i is published row rows[i], our column j published column columns[j] (the other way round where
    `transposed`); -1 for rows or columns that another tensor fills. int64 [out], [in] of ours."""

    rows: Tensor
    columns: Tensor
    transposed: bool = False

    def low_rank(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """A [rank, in], B [out, rank] of the published matrix -> those of ours."""
        left, right = (A.T, B.T) if self.transposed else (B, A)
        return picked(right.T, self.columns).T, picked(left, self.rows)


def picked(values: Tensor, index: Tensor) -> Tensor:
    """values[index] along the first dimension, zeros where the index is -1."""
    chosen = values[index.clamp(min=0)]
    return chosen.masked_fill((index < 0).view(-1, *[1] * (values.ndim - 1)), 0)


def placed(piece: Piece, d_out: int, d_in: int) -> Placement:
    """The placement of a published matrix [d_out, d_in] by `piece`. Errors: UnsupportedError."""
    if piece.take is Piece("").take:
        return Placement(torch.arange(d_out), torch.arange(d_in))
    if d_out * d_in <= LARGEST:
        return _by_positions(piece, d_out, d_in)
    try:  # one column, then one row: no index as large as the matrix
        rows, columns = (_probed(piece, edge) for edge in (_edge(d_out).T, _edge(d_in)))
    except (RuntimeError, ValueError, IndexError, UnsupportedError):
        return _by_positions(piece, d_out, d_in)
    if rows.shape[1] == columns.shape[0] == 1:
        return Placement(rows[:, 0], columns[0])
    if rows.shape[0] == columns.shape[1] == 1:
        return Placement(columns[:, 0], rows[0], transposed=True)
    return _by_positions(piece, d_out, d_in)


def vector_rows(piece: Piece, length: int) -> Tensor:
    """As `Placement.rows`, for a published vector such as a bias."""
    return _probed(piece, torch.arange(length), 1)


def _edge(length: int) -> Tensor:
    return torch.arange(length)[None]


def _by_positions(piece: Piece, d_out: int, d_in: int) -> Placement:
    at = _probed(piece, torch.arange(d_out * d_in).view(d_out, d_in))
    row, column = at.div(d_in, rounding_mode="floor").where(at >= 0, -1), (at % d_in).where(at >= 0, -1)
    for transposed, first, second in ((False, row, column), (True, column, row)):
        rows, columns = first.amax(1), second.amax(0)
        expected = (rows[:, None], columns[None]) if not transposed else (columns[None], rows[:, None])
        ours = (expected[0] * d_in + expected[1]).where((rows >= 0)[:, None] & (columns >= 0)[None], -1)
        if torch.equal(ours, at):
            return Placement(rows, columns, transposed)
    raise _unplaced(piece)


def _probed(piece: Piece, positions: Tensor, ndim: int = 2) -> Tensor:
    """The positions after `take`, -1 where it puts none of them."""
    first, second = (piece.take(positions + offset).to(torch.int64) for offset in (1, 1 + _SHIFT))
    if first.ndim != ndim or not torch.equal(first + _SHIFT * (first != 0), second):
        raise _unplaced(piece)
    return first - 1


def _unplaced(piece: Piece) -> UnsupportedError:
    return UnsupportedError(
        f"A LoRA update of {piece.name} cannot be placed.",
        "This family stores that matrix in a way that is not made of whole published rows and columns.",
        "Leave that module out of the plugin, or merge it into the weights.",
    )
