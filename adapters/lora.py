"""What a plugin changes in a matrix, beside a base that never changes.

The base is W; a plugin makes it W'. A route says how strongly each plugin acts; a blend is W + sum_i s_i (W'_i - W), so
one plugin at strength 1 is exactly that plugin. Everything acts on activations: a switch copies no weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fluvial.adapters.errors import IntegrityError
from fluvial.adapters.formats.product import product
from fluvial.adapters.ops import op

Route = Mapping[str, "float | Tensor"]  # plugin -> strength, a number or [B]
_OTHER_BASE = "The plugin was trained for another base model."


class Update(Protocol):
    """One plugin's W' - W for one matrix [out, in]: of x [B, ..., in], with `base` = x W^T, and y, both [B, ..., out],
    it makes y + strength x (W' - W)^T."""

    def check(self, d_out: int, d_in: int) -> None: ...
    def some(self, rows: slice | Tensor) -> Update:
        """The same for some rows of the matrix only."""
        ...

    def __call__(self, y: Tensor, x: Tensor, base: Tensor, strength: float | Tensor) -> Tensor: ...


@op
def low_rank(
    y: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    base: Tensor,
    gain: Tensor | None,
    bias: Tensor | None,
    scale: float,
    strength: float | Tensor,
) -> Tensor:
    """y + strength (scale (x A^T) B^T + gain * base + bias): y, base [B, ..., out], x [B, ..., in], A [rank, in],
    B [out, rank], gain and bias [out], strength a number or [B] -> [B, ..., out]."""
    update = product(product(x, A), B)
    if scale != 1:
        update = update * scale
    return y + weighted(_finished(update, base, gain, bias), strength)


@dataclass(frozen=True)
class LoraPair:
    """y += scale (x A^T) B^T + gain * x W^T + bias, with A [rank, in], B [out, rank] (Hu et al. 2021).

    `gain` [out] is what DoRA adds (Liu et al. 2024): its m / |W + sBA| - 1, with B times m / |W + sBA|.
    """

    A: Tensor
    B: Tensor
    scale: float = 1.0
    gain: Tensor | None = None
    bias: Tensor | None = None

    def check(self, d_out: int, d_in: int) -> None:
        """Raises `IntegrityError` unless the pair fits a matrix [d_out, d_in]."""
        fits = self.A.ndim == self.B.ndim == 2 and self.A.shape[1] == d_in and self.B.shape[0] == d_out
        rows = all(vector is None or vector.shape == (d_out,) for vector in (self.gain, self.bias))
        if not fits or not rows or self.A.shape[0] != self.B.shape[1]:
            raise IntegrityError(
                f"LoRA pair A {list(self.A.shape)}, B {list(self.B.shape)} does not fit a matrix [{d_out}, {d_in}].",
                hint=_OTHER_BASE,
            )

    def some(self, rows: slice | Tensor) -> LoraPair:
        """The same for some rows of the matrix only."""
        gain, bias = (None if vector is None else vector[rows] for vector in (self.gain, self.bias))
        return LoraPair(self.A, self.B[rows], self.scale, gain, bias)

    def __call__(self, y: Tensor, x: Tensor, base: Tensor, strength: float | Tensor) -> Tensor:
        """y with the update [B, ..., out]."""
        autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)  # training; an op knows no autocast
        add = low_rank.reference if autocast else low_rank
        y = add(y, x, self.A, self.B, base, self.gain, self.bias, self.scale, strength)
        return y


@dataclass(frozen=True)
class LookupPair:
    """LoRA on the rows that a table gives out: row += scale A^T[id] B^T + gain * row; A [rank, vocab], B [d, rank]."""

    A: Tensor
    B: Tensor
    scale: float = 1.0
    gain: Tensor | None = None

    def check(self, vocab: int, d_model: int) -> None:
        """Raises `IntegrityError` unless the pair fits a table [vocab, d_model]."""
        LoraPair(self.A, self.B, gain=self.gain).check(d_model, vocab)

    def some(self, rows: slice | Tensor) -> LookupPair:
        """The same for some rows of the table only."""
        return LookupPair(self.A[:, rows], self.B, self.scale, self.gain)

    def __call__(self, y: Tensor, x: Tensor, base: Tensor, strength: float | Tensor) -> Tensor:
        """x int64 [B, ...], `base` the table's rows [B, ..., d] -> y with the update [B, ..., d]."""
        rows = product(F.embedding(x, self.A.T).to(base.dtype), self.B) * self.scale
        return y + weighted(_finished(rows, base, self.gain, None), strength)


@dataclass(frozen=True)
class Replacement:
    """Another matrix [out, in] in place of the base's, and what the bias differs by."""

    matrix: Tensor
    bias: Tensor | None = None

    def check(self, d_out: int, d_in: int) -> None:
        """Raises `IntegrityError` unless the matrix is as large as the base's."""
        if self.matrix.shape != (d_out, d_in) or (self.bias is not None and self.bias.shape != (d_out,)):
            raise IntegrityError(
                f"A module of {list(self.matrix.shape)} cannot replace a matrix [{d_out}, {d_in}].", hint=_OTHER_BASE
            )

    def some(self, rows: slice | Tensor) -> Replacement:
        """The same for some rows of the matrix only."""
        return Replacement(self.matrix[rows], None if self.bias is None else self.bias[rows])

    def __call__(self, y: Tensor, x: Tensor, base: Tensor, strength: float | Tensor) -> Tensor:
        """y with the update [B, ..., out]; integer x are rows to look up."""
        other = self.matrix[x] if not x.is_floating_point() else product(x, self.matrix)
        return y + weighted(_finished(other.to(base.dtype) - base, base, None, self.bias), strength)


def _finished(update: Tensor, base: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
    if gain is not None:
        update = update + base * gain.to(base.dtype)
    return update if bias is None else update + bias.to(base.dtype)


def weighted(update: Tensor, strength: float | Tensor) -> Tensor:
    """update [B, ...] times its strength, a number or one for each row [B]."""
    if not isinstance(strength, Tensor):
        return update if strength == 1 else update * strength
    return update * strength.to(update.device, update.dtype).reshape(-1, *[1] * (update.ndim - 1))


def routed(base: Tensor, y: Tensor, x: Tensor, updates: Mapping[str, Update], route: Route) -> Tensor:
    """y with the updates of the plugins that the route names; `base` is x W^T without a bias."""
    for plugin, strength in route.items():
        if (update := updates.get(plugin)) is not None:
            y = update(y, x, base, strength)
    return y
