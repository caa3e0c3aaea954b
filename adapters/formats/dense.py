"""Dense storage: the matrix itself, in fp32, bf16 or fp16. The only trainable format."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fluvial.adapters.formats.base import Format, Parts, register


class Dense(Format):
    name = "dense"
    trainable = True

    def pack(self, matrix: Tensor) -> Parts:
        return {"weight": matrix}

    def unpack(self, parts: Parts) -> Tensor:
        return parts["weight"]

    def matmul(self, x: Tensor, parts: Parts) -> Tensor:
        return F.linear(x, parts["weight"])

    def rows(self, parts: Parts, ids: Tensor) -> Tensor:
        return F.embedding(ids, parts["weight"])


DENSE = register(Dense())
