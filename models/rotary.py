"""Rotary position embedding (Su et al. 2021), the half-split layout of Llama and Qwen, over the first `width`
channels; with the published ways to stretch it over longer contexts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fluvial.adapters.errors import UsageError

FEW, STRETCH = 16, 256  # tokens of a step whose tables are cut from those of a stretch

_BOTH = frozenset({"factor", "original_max_position_embeddings"})
SCALINGS = {  # the options of each kind, as config files spell them
    "linear": _BOTH,
    "llama3": _BOTH | {"low_freq_factor", "high_freq_factor"},
    "yarn": _BOTH | {"beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"},
}


@dataclass(frozen=True)
class Scaling:
    """How frequencies change for contexts longer than the `original_max_position_embeddings` of pre-training.

    "linear" divides all by `factor` (Chen et al. 2023); "llama3" divides the slow ones and keeps the fast ones, with a
    smooth transition (Llama 3.1); "yarn" ramps between the two over the number of turns in the original context, and
    scales attention (Peng et al. 2023). Raises ValueError for an option that is missing or makes no sense.
    """

    kind: str
    factor: float
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True

    def __post_init__(self) -> None:
        if self.kind not in SCALINGS or not self.factor > 0:
            raise ValueError(f"rope scaling {self.kind!r:.40} by {self.factor}")
        if self.kind != "linear" and not self.original_max_position_embeddings > 0:
            raise ValueError(f"{self.kind} needs original_max_position_embeddings > 0")
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError("llama3 needs 0 < low_freq_factor < high_freq_factor")

    @property
    def gain(self) -> float:
        """What cos and sin are multiplied by."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._temperature(self.mscale) / self._temperature(self.mscale_all_dim)
        return self._temperature(1.0)

    def _temperature(self, scale: float) -> float:
        return 0.1 * scale * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def stretch(self, frequency: Tensor, theta: float) -> Tensor:
        """frequency [width / 2] in radians per token -> the same, scaled."""
        slow = frequency / self.factor
        if self.kind == "linear":
            return slow
        if self.kind == "llama3":
            turns = self.original_max_position_embeddings * frequency / (2 * math.pi)
            keep = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        else:
            first, last = (self._channel(turns, frequency, theta) for turns in (self.beta_fast, self.beta_slow))
            if self.truncate:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, 2 * len(frequency) - 1)
            at = torch.arange(len(frequency), dtype=frequency.dtype, device=frequency.device)
            keep = 1 - (at - first) / (last - first or 0.001)
        return torch.lerp(slow, frequency, keep.clamp(0, 1))

    def _channel(self, turns: float, frequency: Tensor, theta: float) -> float:
        """The (fractional) frequency index that makes so many turns in the original context."""
        wavelength = self.original_max_position_embeddings / turns
        return len(frequency) * math.log(wavelength / (2 * math.pi)) / math.log(theta)


def rotary_tables(
    positions: Tensor, width: int, theta: float, sections: Sequence[int] = (), scaling: Scaling | None = None
) -> Tensor:
    """positions int64 [B, T] -> cos and sin [2, B, 1, T, width / 2]; angles in fp64, since positions reach millions.

    positions [3, B, T] (time, row, column) are interleaved over the frequencies (Qwen3-VL): the first 3 * sections[1]
    take rows at 1, 4, 7, ..., the first 3 * sections[2] columns at 2, 5, 8, ..., all others time.
    """
    frequency = _frequency(width, theta, scaling, positions.device)
    if positions.ndim == 2:
        angle = positions[:, None, :, None] * frequency
    else:
        angle = positions[_axes(width // 2, sections, positions.device)].movedim(0, -1)[:, None] * frequency
    tables = torch.stack([angle.cos(), angle.sin()])
    return tables if scaling is None or scaling.gain == 1 else tables * scaling.gain


def next_tables(
    start: int, tokens: int, width: int, theta: float, scaling: Scaling | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin [1, T, 1, width / 2] of at most `FEW` tokens from a position on, on the CPU: cut from those of a
    stretch of positions, because a dozen small operations a token would take longer than a layer."""
    stretch, at = divmod(start, STRETCH)
    cos, sin = _stretch(stretch, width, theta, scaling, dtype)
    return cos[:, at : at + tokens], sin[:, at : at + tokens]


@lru_cache(maxsize=64)
def _stretch(index: int, width: int, theta: float, scaling: Scaling | None, dtype: torch.dtype) -> tuple[Tensor, ...]:
    with torch.inference_mode(False), torch.no_grad():
        positions = torch.arange(index * STRETCH, (index + 1) * STRETCH + FEW)[None]
        tables = rotary_tables(positions, width, theta, (), scaling).to(dtype)
        return tables.transpose(2, 3).contiguous().unbind()


@lru_cache(maxsize=16)
def _frequency(width: int, theta: float, scaling: Scaling | None, device: torch.device) -> Tensor:
    """In radians per token, fp64 [width / 2]."""
    with torch.inference_mode(False):
        frequency = theta ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)
        return frequency if scaling is None else scaling.stretch(frequency, theta)


def _axes(frequencies: int, sections: Sequence[int], device: torch.device) -> Tensor:
    """The axis (0 time, 1 row, 2 column) that each frequency follows."""
    if len(sections) != 3:
        raise UsageError("Positions on three axes need an attention with three mrope sections.")
    at = torch.arange(frequencies, device=device)
    axis = at % 3
    return torch.where(at < 3 * torch.tensor(sections, device=device)[axis], axis, 0)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., D] -> the same with its first 2 * R channels rotated by cos, sin [..., R]."""
    half = cos.shape[-1]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)
