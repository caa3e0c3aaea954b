"""What the likeliest tokens are: the one op of choosing among a large vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from fluvial.adapters.ops import op


@op
def largest(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest values of rows [B, V], largest first, and their places, int64: both [B, count]. Of equal ones
    that which stands first comes first, NaN before all."""
    if count == 1:
        ids = rows.argmax(-1, keepdim=True)
        return rows.gather(-1, ids), ids
    found = [_of_row(row, least, count) for row, least in zip(rows, rows.topk(count).values[:, -1], strict=True)]
    ids = torch.stack(found)
    return rows.gather(-1, ids), ids


def _of_row(row: Tensor, least: Tensor, count: int) -> Tensor:
    """topk says nothing of the order of equal values."""
    ids = ((row >= least) | row.isnan()).nonzero()[:, 0]
    return ids[row[ids].sort(stable=True, descending=True).indices[:count]]
