"""int4: w = code * scale + offset, codes 0..15, a scale per group of columns; without an offset it is -8 * scale.

Two codes to a byte: byte l of the 16 that hold a block of 32 columns has column l in its low nibble and column 16 + l
in its high one, so that a vector of bytes gives two vectors of neighbouring columns.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fluvial.adapters.formats.base import Parts, register
from fluvial.adapters.formats.grouped import GROUPS, Grouped, linear
from fluvial.adapters.ops import op

# The largest value's code, in steps: whole ones find the scale of what was unpacked, above 8 it is clipped
REACHES = (8, 7, 6, 5, 8.5, 9, 10)
SHRINKS = (0.96, 0.92, 0.87, 0.8)  # of the range, with an offset


@op
def int4_linear(x: Tensor, q: Tensor, scale: Tensor, offset: Tensor | None, x_bits: int | None = None) -> Tensor:
    """x [..., in]; q uint8 [out, in / 2]; scale, offset fp16 or bf16 [out, in / group] -> x W^T [..., out] in x's
    dtype. A scale may be negative; offset None is -8 * scale. x is rounded to `x_bits` (grouped.py), if given."""

    def unpacked(rows: slice) -> Tensor:
        return _unpack(q[rows], scale[rows], None if offset is None else offset[rows])

    return linear(x, q.shape[0], unpacked, x_bits)


@op
def int4_rows(ids: Tensor, q: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    """Rows `ids` int64 [...] of the matrix that int4_linear multiplies by -> fp32 [..., in]."""
    at = ids.flatten()
    return _unpack(q[at], scale[at], None if offset is None else offset[at]).reshape(*ids.shape, -1)


def _unpack(q: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
    pairs = q.unflatten(-1, (-1, 16))
    codes = torch.cat([pairs & 15, pairs >> 4], -1).flatten(-2).unflatten(-1, (scale.shape[-1], -1))
    step = scale.float()[..., None]
    if offset is None:
        return codes.float().sub_(8).mul_(step).flatten(-2)
    return codes.float().mul_(step).add_(offset.float()[..., None]).flatten(-2)


class Int4(Grouped):
    """Codes -8..7 (stored plus 8) and a scale with the sign that gives the largest value the code -8."""

    bits, lowest, highest, refits = 4, -8, 7, 1

    def layout(self, d_out: int, d_in: int) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
        return {"q": ((d_out, d_in // 2), torch.uint8), "scale": ((d_out, d_in // self.group), self.scales)}

    def candidates(self, low: Tensor, high: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        largest = torch.where(-low >= high, low, high)
        return ((self._scale(largest / -reach), torch.zeros_like(low)) for reach in REACHES)

    def stored(self, codes: Tensor, scale: Tensor, offset: Tensor) -> Parts:
        halves = (codes - self.lowest).to(torch.uint8).unflatten(-1, (-1, 2, 16))
        return {"q": (halves[..., 0, :] | halves[..., 1, :] << 4).flatten(-2), "scale": scale.to(self.scales)}

    def unpack(self, parts: Parts) -> Tensor:
        return _unpack(parts["q"], parts["scale"], parts.get("offset"))

    def matmul(self, x: Tensor, parts: Parts) -> Tensor:
        y: Tensor = int4_linear(x, parts["q"], parts["scale"], parts.get("offset"), self.x_bits)
        return y

    def rows(self, parts: Parts, ids: Tensor) -> Tensor:
        y: Tensor = int4_rows(ids, parts["q"], parts["scale"], parts.get("offset"))
        return y


class Int4Zero(Int4):
    """Codes 0..15 over an offset: for groups that do not lie around zero."""

    lowest, highest, has_offset = 0, 15, True

    def __init__(self, group: int, scales: torch.dtype, x_bits: int | None = None) -> None:
        super().__init__(group, scales, x_bits)
        self.name = self.name.replace(f"g{group}", f"g{group}z")

    def layout(self, d_out: int, d_in: int) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
        layout = super().layout(d_out, d_in)
        return layout | {"offset": layout["scale"]}

    def candidates(self, low: Tensor, high: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        spread = high - low
        for steps in range(15, 7, -1):  # whole ones find the scale of what was unpacked
            yield self._steps(spread / steps, low)
        for share in SHRINKS:
            yield self._steps(spread * share / 15, low + spread * (1 - share) / 2)

    def _steps(self, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        offset = self._scale(offset)
        # below 2^-11 of the offset a step would be lost in fp32's sum
        least = torch.where(scale > 0, offset.abs() * 2**-11, 0)
        return self._scale(scale.maximum(least)), offset

    def stored(self, codes: Tensor, scale: Tensor, offset: Tensor) -> Parts:
        return super().stored(codes, scale, offset) | {"offset": offset.to(self.scales)}


for _group in GROUPS:
    for _scales in (torch.float16, torch.bfloat16):
        for _x_bits in (None, 8):
            for _kind in (Int4, Int4Zero):
                register(_kind(_group, _scales, _x_bits))
