"""What int8 and int4 share: codes with a scale per group of columns, w = code * scale + offset, and the search for
the scales that lose least. Packing and unpacking go a block of rows at a time, so that temporaries stay small.

A format whose name ends in "-a8" stores the same and rounds what it multiplies: activations to 8 bits for each 32 of
them, as llama.cpp does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fluvial.adapters.errors import IntegrityError, UnsupportedError
from fluvial.adapters.formats.base import Format, Parts
from fluvial.adapters.formats.product import product

GROUPS = (128, 64, 32)  # columns that share a scale, largest first
TOGETHER = 32  # activations that share a unit where they are rounded
BLOCK = 1 << 17  # elements in work at a time
ROUNDS = 16  # a pack that is not its own best pack by then stays as it is
Fit = tuple[Tensor, Tensor, Tensor]  # codes [n, group] (or the error [n, 1]), scale [n, 1], offset [n, 1]; fp32


class Grouped(Format, ABC):
    """Codes `lowest`..`highest`, and a scale (fp16 or bf16) per `group` columns; their number is a multiple of it.

    Packing what `unpack` gave returns the same parts. Values that are not finite raise `IntegrityError`.
    """

    bits: int
    lowest: int
    highest: int
    refits = 0  # least-squares rounds after the search
    has_offset = False

    def __init__(self, group: int, scales: torch.dtype, x_bits: int | None = None) -> None:
        self.group, self.scales, self.x_bits = group, scales, x_bits
        self.name = f"int{self.bits}-g{group}" + ("-bf16" if scales == torch.bfloat16 else "")
        self.name += f"-a{x_bits}" if x_bits else ""

    @abstractmethod
    def layout(self, d_out: int, d_in: int) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
        """Shape and dtype of each part."""

    @abstractmethod
    def candidates(self, low: Tensor, high: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        """Scales and offsets to try for groups that span low..high, each [n, 1]; of equally good ones the first wins.
        They hold every scale with which such a group could have been unpacked."""

    @abstractmethod
    def stored(self, codes: Tensor, scale: Tensor, offset: Tensor) -> Parts:
        """codes fp32 [rows, in], scale and offset [rows, in / group] -> parts."""

    def empty(self, d_out: int, d_in: int, dtype: torch.dtype | None, device: torch.device | str | None) -> Parts:
        if d_in % self.group:
            raise UnsupportedError(f"A matrix with {d_in} columns has no groups of {self.group} ('{self.name}').")
        layout = self.layout(d_out, d_in)
        return {name: torch.empty(shape, dtype=kind, device=device) for name, (shape, kind) in layout.items()}

    @torch.no_grad()
    def pack(self, matrix: Tensor) -> Parts:
        d_out, d_in = matrix.shape
        parts = self.empty(d_out, d_in, None, matrix.device)
        if matrix.is_meta:
            return parts
        for rows in blocks(d_out, d_in):
            wide = matrix[rows].float()
            if not wide.isfinite().all():
                raise IntegrityError("The matrix holds values that are not finite.", hint="Download the model again.")
            codes, scale, offset = self._settled(wide.reshape(-1, self.group))
            per_row = (len(wide), -1)
            stored = self.stored(codes.reshape(per_row), scale.reshape(per_row), offset.reshape(per_row))
            for name, values in stored.items():
                parts[name][rows] = values
        return parts

    def matmul_rows(self, x: Tensor, parts: Parts, rows: slice | Tensor) -> Tensor:
        return self.matmul(x, {name: part[rows] for name, part in parts.items()})

    def _settled(self, w: Tensor) -> Fit:
        """The best fit that is also its own best fit: packing an unpacked matrix must change nothing."""
        fit = self._fit(w)
        todo = torch.arange(len(w), device=w.device)
        for _ in range(ROUNDS):
            codes, scale, offset = (part[todo] for part in fit)
            values = codes * scale + offset
            first = next(iter(self.candidates(values.amin(-1, keepdim=True), values.amax(-1, keepdim=True))))
            same = (first[0] == scale) & (first[1] == offset)  # the first candidate is exact: it wins
            todo, values = todo[~same[:, 0]], values[~same[:, 0]]
            if not len(todo):
                break
            again = self._fit(values)
            moved = torch.stack([(a != part[todo]).any(-1) for a, part in zip(again, fit, strict=True)]).any(0)
            for a, part in zip(again, fit, strict=True):
                part[todo] = a
            todo = todo[moved]
        return fit

    def _fit(self, w: Tensor) -> Fit:
        """Groups [n, group] -> the candidate with the least squared error, refitted to its codes."""
        work = torch.empty_like(w), torch.empty_like(w)
        best = None
        for scale, offset in self.candidates(w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)):
            best = self._better(best, w, scale, offset, work)
        assert best is not None
        for _ in range(self.refits):
            offset, codes = best[1], self._codes(w, *best[:2], *work)
            if self.has_offset:
                centred = codes - codes.mean(-1, keepdim=True)
                scale = self._scale((w * centred).sum(-1, keepdim=True) / _some(centred.square().sum(-1, keepdim=True)))
                offset = self._scale(w.mean(-1, keepdim=True) - scale * codes.mean(-1, keepdim=True))
            else:
                scale = self._scale((w * codes).sum(-1, keepdim=True) / _some(codes.square().sum(-1, keepdim=True)))
            best = self._better(best, w, scale, offset, work)
        return self._codes(w, *best[:2], *work), best[0], best[1]

    def _better(self, best: Fit | None, w: Tensor, scale: Tensor, offset: Tensor, work: tuple[Tensor, Tensor]) -> Fit:
        """(scale, offset, error) of `best`, or of the newcomer where its error is smaller."""
        steps, codes = work
        codes = self._codes(w, scale, offset, steps, codes)
        off = torch.linalg.vector_norm(codes.sub_(steps), dim=-1, keepdim=True).mul_(_some(scale).abs())
        new = (scale, offset, off)
        if best is None:
            return new
        wins = new[2] < best[2]
        return torch.where(wins, new[0], best[0]), torch.where(wins, new[1], best[1]), new[2].minimum(best[2])

    def _codes(self, w: Tensor, scale: Tensor, offset: Tensor, steps: Tensor, codes: Tensor) -> Tensor:
        if self.has_offset:
            torch.sub(w, offset, out=steps).div_(_some(scale))
        else:
            torch.div(w, _some(scale), out=steps)
        return torch.round(steps, out=codes).clamp_(self.lowest, self.highest)

    def _scale(self, scale: Tensor) -> Tensor:
        """Rounded to what is stored, in fp32 again."""
        rounded = scale.to(self.scales).float()
        if not rounded.isfinite().all():
            raise IntegrityError(
                f"The matrix needs a scale or offset of {float(scale.abs().max()):.1e}.",
                f"{str(self.scales).removeprefix('torch.')} ends below that.",
                "Load the model without quantization.",
            )
        return rounded


def _some(scale: Tensor) -> Tensor:
    """1 instead of 0, to divide by."""
    return torch.where(scale == 0, 1.0, scale)


def blocks(d_out: int, d_in: int) -> list[slice]:
    """Slices of the rows of a matrix [out, in], each of at most about `BLOCK` elements."""
    step = max(1, BLOCK // max(d_in, 1))
    return [slice(start, min(start + step, d_out)) for start in range(0, d_out, step)]


def linear(x: Tensor, d_out: int, unpacked: Callable[[slice], Tensor], x_bits: int | None = None) -> Tensor:
    """x [..., in], of so many bits, times the rows that `unpacked(slice)` gives, transposed -> [..., out] in x's
    dtype."""
    given = x if x_bits is None else rounded(x, x_bits)
    parts = [product(given, unpacked(rows)) for rows in blocks(d_out, x.shape[-1])]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).to(x.dtype)


def rounded(x: Tensor, bits: int) -> Tensor:
    """x [..., in] -> the nearest whole numbers of so many bits times a unit per `TOGETHER` columns, which makes the
    largest the highest number; fp32, fp64 of fp64. A gradient passes as if nothing had been rounded."""
    together = x.detach().float().unflatten(-1, (-1, TOGETHER))
    unit = (together.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)).clamp_min(1.2e-38)
    whole = torch.round(together * (1.0 / unit))
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    near = (whole.to(wide) * unit.to(wide)).flatten(-2)
    return x + (near - x).detach() if x.requires_grad else near
