"""int8: w = code * scale, codes -127..127, a scale per group of columns."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fluvial.adapters.formats.base import Parts, register
from fluvial.adapters.formats.grouped import GROUPS, Grouped, linear
from fluvial.adapters.ops import op


@op
def int8_linear(x: Tensor, q: Tensor, scale: Tensor, x_bits: int | None = None) -> Tensor:
    """x [..., in]; q int8 [out, in]; scale fp16 or bf16 [out, in / group] -> x W^T [..., out] in x's dtype. x is
    rounded to `x_bits` (grouped.py), if given."""
    return linear(x, q.shape[0], lambda rows: _unpack(q[rows], scale[rows]), x_bits)


@op
def int8_rows(ids: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """Rows `ids` int64 [...] of the matrix that int8_linear multiplies by -> fp32 [..., in]."""
    return _unpack(q[ids.flatten()], scale[ids.flatten()]).reshape(*ids.shape, -1)


def _unpack(q: Tensor, scale: Tensor) -> Tensor:
    grouped = q.unflatten(-1, (scale.shape[-1], -1)).float()
    return grouped.mul_(scale.float()[..., None]).flatten(-2)


class Int8(Grouped):
    bits, lowest, highest = 8, -127, 127

    def layout(self, d_out: int, d_in: int) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
        return {"q": ((d_out, d_in), torch.int8), "scale": ((d_out, d_in // self.group), self.scales)}

    def candidates(self, low: Tensor, high: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        # with so many codes nothing is gained by clipping
        return [(self._scale(high.maximum(-low) / 127), torch.zeros_like(high))]

    def stored(self, codes: Tensor, scale: Tensor, offset: Tensor) -> Parts:
        return {"q": codes.to(torch.int8), "scale": scale.to(self.scales)}

    def unpack(self, parts: Parts) -> Tensor:
        return _unpack(parts["q"], parts["scale"])

    def matmul(self, x: Tensor, parts: Parts) -> Tensor:
        y: Tensor = int8_linear(x, parts["q"], parts["scale"], self.x_bits)
        return y

    def rows(self, parts: Parts, ids: Tensor) -> Tensor:
        y: Tensor = int8_rows(ids, parts["q"], parts["scale"])
        return y


for _group in GROUPS:
    for _scales in (torch.float16, torch.bfloat16):
        for _x_bits in (None, 8):
            register(Int8(_group, _scales, _x_bits))
