"""Dense storage: the matrix itself. "dense" has the precision that the model computes in, and is the only trainable
format; "fp32", "bf16" and "fp16" have their own and are converted on use."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fluvial.adapters.formats.base import Format, Parts, register
from fluvial.adapters.formats.product import product
from fluvial.adapters.ops import op


@op
def dense_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., in], weight [out, in] in any precision -> x W^T [..., out] in x's dtype."""
    return product(x, weight)


class Dense(Format):
    name = "dense"
    trainable = True

    def pack(self, matrix: Tensor) -> Parts:
        return {"weight": matrix}

    def unpack(self, parts: Parts) -> Tensor:
        return parts["weight"]

    def matmul(self, x: Tensor, parts: Parts) -> Tensor:
        weight = parts["weight"]
        autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
        if torch.is_grad_enabled() or autocast:  # training; an op knows no autocast
            return F.linear(x, weight)
        y: Tensor = dense_linear(x, weight)
        return y

    def matmul_rows(self, x: Tensor, parts: Parts, rows: slice | Tensor) -> Tensor:
        return self.matmul(x, {"weight": parts["weight"][rows]})

    def rows(self, parts: Parts, ids: Tensor) -> Tensor:
        return F.embedding(ids, parts["weight"])


class Fixed(Dense):
    """A precision of its own, whatever the model computes in."""

    trainable = False

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self.dtype = name, dtype

    def empty(self, d_out: int, d_in: int, dtype: torch.dtype | None, device: torch.device | str | None) -> Parts:
        return super().empty(d_out, d_in, self.dtype, device)

    def pack(self, matrix: Tensor) -> Parts:
        return {"weight": matrix.to(self.dtype)}

    def matmul(self, x: Tensor, parts: Parts) -> Tensor:
        y: Tensor = dense_linear(x, parts["weight"])
        return y


DENSE = register(Dense())
for _name, _dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
    register(Fixed(_name, _dtype))
