"""`Linear`: the only door to a weight matrix, for every projection of every architecture, encoder and head.

Storage format x LoRA plugins x kernel meet here, so that each composes with each and no architecture can skip one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fluvial.adapters.formats import DENSE, Format
from fluvial.adapters.formats.base import Parts
from fluvial.adapters.lora import Route, Update, routed
from fluvial.adapters.module import Module, initial
from fluvial.adapters.operands import Routes
from fluvial.adapters.recording import TOKENS


class Linear(Module):
    """y = x W^T + bias + the routed plugins' updates; x [..., in] -> y [..., out]."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        bias: bool = False,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self.plugins: dict[str, Update] = {}
        self.install(DENSE, DENSE.empty(d_out, d_in, dtype, device))
        self.bias = nn.Parameter(torch.empty(d_out, dtype=dtype, device=device)) if bias else None
        self.reset()

    def install(self, format: Format, parts: Parts) -> None:
        """Takes a matrix that is stored already."""
        for name in getattr(self, "_part_names", ()):
            delattr(self, name)
        self.format, self._part_names = format, tuple(parts)
        for name, part in parts.items():
            if format.trainable:
                self.register_parameter(name, nn.Parameter(part))
            else:
                self.register_buffer(name, part)

    @initial
    def reset(self) -> None:
        """Fresh uniform weights in +-1/sqrt(in); a bias of zero. For training and for random test models."""
        bound = 1.0 / math.sqrt(self.d_in)
        self.parts["weight"].uniform_(-bound, bound)
        if self.bias is not None:
            self.bias.zero_()

    @property
    def parts(self) -> Parts:
        """The stored tensors by part name."""
        held: Mapping[str, Tensor | None] = self._parameters if self.format.trainable else self._buffers
        return {name: part for name in self._part_names if (part := held[name]) is not None}

    def store(self, format: Format) -> None:
        """Re-packs the matrix in another storage format."""
        with torch.no_grad():
            matrix = self.format.unpack(self.parts)
            self.install(format, format.pack(matrix))

    def matrix(self) -> Tensor:
        """The dense matrix [out, in] that this door computes with, without plugins."""
        return self.format.unpack(self.parts)

    def attach(self, plugin: str, update: Update) -> None:
        """Adds a plugin's update; it acts only on forwards whose route names it."""
        update.check(self.d_out, self.d_in)
        self.plugins[plugin] = update
        Routes.forget()

    def detach(self, plugin: str) -> None:
        """Removes a plugin's update, if there is one here."""
        if self.plugins.pop(plugin, None) is not None:
            Routes.forget()

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        base = self.format.matmul(x, self.parts)
        if route and self.plugins:
            return routed(base, base if self.bias is None else base + self.bias, x, self.plugins, route)
        return base if self.bias is None else self._biased(base, self.bias)

    def _biased(self, base: Tensor, bias: Tensor) -> Tensor:
        """base + bias; of many rows, which no recording holds, in the same memory."""
        many = base.numel() > TOKENS * self.d_out
        return base.add_(bias) if many and base.dtype is bias.dtype and not torch.is_grad_enabled() else base + bias

    def some(self, x: Tensor, rows: slice | Tensor, route: Route | None = None) -> Tensor:
        """Some rows of y only, a slice or int64 [n]: x [..., in] -> [..., n]."""
        base = self.format.matmul_rows(x, self.parts, rows)
        y = base if self.bias is None else base + self.bias[rows]
        if not route:
            return y
        acting = {name: update.some(rows) for name, update in self.plugins.items() if name in route}
        return routed(base, y, x, acting, route)


class Embedding(Linear):
    """A table of rows [vocab, d]: `lookup` reads rows, calling it projects onto the vocabulary (a tied head)."""

    def __init__(self, vocab: int, d_model: int, *, dtype: torch.dtype | None = None) -> None:
        super().__init__(d_model, vocab, dtype=dtype)
        self.lookups: dict[str, Update] = {}

    @initial
    def reset(self) -> None:
        self.parts["weight"].normal_(std=self.d_in**-0.5)

    def attach_lookup(self, plugin: str, update: Update) -> None:
        """As `attach`, for the rows that `lookup` gives; a tied head keeps the base's."""
        update.check(self.d_out, self.d_in)
        self.lookups[plugin] = update

    def detach(self, plugin: str) -> None:
        super().detach(plugin)
        self.lookups.pop(plugin, None)

    def lookup(self, ids: Tensor, route: Route | None = None) -> Tensor:
        """ids int64 [B, ...] -> rows [B, ..., d]."""
        rows = self.format.rows(self.parts, ids)
        return routed(rows, rows, ids, self.lookups, route) if route and self.lookups else rows
