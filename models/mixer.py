"""`Mixer`: the only thing that differs between architectures. A file per mixer; a decoder is a flat list of them.

A mixer turns normed hidden states x [B, T, D] into an update [B, T, D], reading its leaves of the state and
returning what they become as a `Pending` each. The same call serves prefill, chunk and single step: any split of
an input gives the same outputs and the same state. Nothing is written into the given leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.lora import Route
from fluvial.adapters.module import Module
from fluvial.models.journal import Pending
from fluvial.models.state import Leaf
from fluvial.models.tree import Tree


def blank(values: Tensor, padding: Tensor | None) -> Tensor:
    """values [B, T, ...] with zeros where padding, bool [B, T], is true."""
    if padding is None:
        return values
    return values.masked_fill(padding.view(*padding.shape, *[1] * (values.ndim - 2)), 0)


@dataclass
class Step:
    """What one forward knows besides x: where each row stands, which tokens are real, which plugins act.

    position[b] tokens came before; `lengths[b]` of the T tokens are real (None: all). `shared` carries values from
    earlier to later layers (RWKV-7's v_first). With `journal`, rows are kept so that any prefix can be committed.
    What rotates by position takes `rotary`, which media tokens set and text continues from `rotary_start`; what masks
    takes `positions`, the plain count of tokens. In a `tree` only its ancestors come before a token.
    """

    position: tuple[int, ...]
    tokens: int
    device: torch.device
    lengths: tuple[int, ...] | None = None
    journal: bool = False
    route: Route | None = None
    rotary_start: tuple[int, ...] | None = None
    rotary_given: Tensor | None = None
    tree: Tree | None = None
    shared: dict[str, Tensor] = field(default_factory=dict)
    _memo: dict[Hashable, Any] = field(default_factory=dict)

    def memo(self, key: Hashable, make: Callable[[Step], Any]) -> Any:
        """A value that several layers need, made once per forward (rotary tables)."""
        if key not in self._memo:
            self._memo[key] = make(self)
        return self._memo[key]

    @cached_property
    def positions(self) -> Tensor:
        """How many tokens came before each, int64 [B, T]."""
        start = torch.tensor(self.position, device=self.device)
        order = torch.arange(self.tokens, device=self.device) if self.tree is None else self.tree.depth
        return start[:, None] + order[None, :]

    @cached_property
    def rotary(self) -> Tensor:
        """Rotary positions int64 [B, T], or [3, B, T] (time, row, column) where media are."""
        if self.rotary_given is not None:
            return self.rotary_given
        if self.rotary_start is None or self.rotary_start == self.position:
            return self.positions
        shift = [r - p for r, p in zip(self.rotary_start, self.position, strict=True)]
        return self.positions + torch.tensor(shift, device=self.device)[:, None]

    @property
    def next_rotary(self) -> int | None:
        """The rotary position of the first token, where the tokens of a single row follow one another."""
        if len(self.position) != 1 or self.rotary_given is not None or self.tree is not None:
            return None
        return (self.rotary_start or self.position)[0]

    @cached_property
    def padding(self) -> Tensor | None:
        """True where a token is padding, bool [B, T]; None when all tokens are real."""
        if self.lengths is None:
            return None
        lengths = torch.tensor(self.lengths, device=self.device)
        return torch.arange(self.tokens, device=self.device)[None, :] >= lengths[:, None]

    def blank(self, values: Tensor) -> Tensor:
        """values [B, T, ...] with zeros at padding: a zero gate, decay or key leaves a recurrence as it was."""
        return blank(values, self.padding)


class Mixer(Module):
    """One block's inside. Subclasses register themselves under a kind and take their options as keyword arguments.
    `trees`: whether it heeds `Step.tree`."""

    trees: bool = False

    def init_state(self, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Leaf]:
        """Empty leaves for `batch` rows of a model that computes in `dtype`. One that sums up over tokens is S or h."""
        return {}

    def forward(self, x: Tensor, state: dict[str, Leaf], step: Step) -> tuple[Tensor, dict[str, Pending]]:
        raise NotImplementedError

    def reset(self) -> None:
        """Initial values for training where the usual ones do not fit; `Linear` resets itself."""


_mixers: dict[str, type[Mixer]] = {}


def mixer(kind: str) -> Callable[[type[Mixer]], type[Mixer]]:
    """Registers a mixer class under the kind that block lists name."""

    def register(cls: type[Mixer]) -> type[Mixer]:
        _mixers[kind] = cls
        return cls

    return register


def kinds() -> dict[str, type[Mixer]]:
    """Every registered mixer class by kind."""
    return dict(_mixers)


def build(kind: str, d_model: int, **options: object) -> Mixer:
    """The mixer of that kind for width `d_model`."""
    if kind not in _mixers:
        raise UnsupportedError(f"Unknown mixer '{kind}'.", hint=f"Available: {', '.join(sorted(_mixers))}.")
    return _mixers[kind](d_model, **options)
