"""Replays: a decoder's forward of a few tokens as one native call (adapters/recording.py).

The second forward of a shape is recorded, later ones run the recording: the same kernels on the same weights, so the
same bits, without Python between them. A recording belongs to the weights that it was made with and ends when one is
exchanged; plugins are operands of it, so that one serves all routes that are alike (adapters/operands.py). What cannot
be recorded (padding, half precision, mixers without kernels) goes on as before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.adapters import native, ops, pages
from fluvial.adapters.linear import Linear
from fluvial.adapters.module import Module, changes
from fluvial.adapters.operands import Routes
from fluvial.adapters.recording import TOKENS
from fluvial.models.mixer import Step
from fluvial.models.packed_leaves import Layout
from fluvial.models.recorded import Forward, Recorded, Result, ready, whole
from fluvial.models.state import State

MOST = 32  # recordings that a decoder keeps

_eager: ContextVar[bool] = ContextVar("eager", default=False)


@contextmanager
def eager() -> Iterator[None]:
    """Inside, every forward calls its kernels one by one (for tests and for timing them)."""
    token = _eager.set(True)
    try:
        yield
    finally:
        _eager.reset(token)


class _Weights:
    """The tensors of a module, and whether they still lie where they did; the operands of its plugins."""

    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in modules)
        self.why = "a hook looks into the forward" if hooked else ""
        self.routes = Routes(m.plugins for m in modules if isinstance(m, Linear))
        self._owners = [d for m in modules for d in (m._parameters, m._buffers)]
        self._plain = [m for m in modules if not isinstance(m, Module)]  # containers
        self._children = [m._modules for m in modules if not isinstance(m, Module)]
        self._inside, self._changes = self._held(), changes()
        self.tensors = [t for t in chain.from_iterable(d.values() for d in self._owners) if t is not None]

    def _held(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, self._children)))

    @property
    def unchanged(self) -> bool:
        return self._changes == changes() and self._held() == self._inside


class Replays:
    """A decoder's recordings by the shape of the forward; a copy of the decoder starts without."""

    def __init__(self) -> None:
        self._weights: _Weights | None = None
        self._known = dict[tuple[Any, ...], Recorded | None]()  # None: seen once
        self._expected = set[tuple[torch.Size, bool]]()
        self._layouts = dict[Layout, Layout]()

    def __reduce__(self) -> tuple[type[Replays], tuple[()]]:
        return Replays, ()

    def refusals(self) -> dict[tuple[int, ...], str]:
        """Why forwards of x [B, T, D] were not recorded, "" for those that were."""
        return {key[0]: replay.why for key, replay in self._known.items() if replay is not None}

    def expect(self, shape: torch.Size, journal: bool) -> None:
        """Forwards of x with this shape [B, T, D] are recorded the first time."""
        self._expected.add((shape, journal))

    def run(self, decoder: nn.Module, forward: Forward, x: Tensor, state: State, step: Step) -> Result | None:
        """What `forward(x, leaves, step)` gives, its leaves committed unless the step wants a journal. None where it
        has to be called."""
        if state.dtype != "fp32" or not _recordable(x, step):
            return None
        if self._weights is None or not self._weights.unchanged:
            self._weights, self._known = _Weights(decoder), {}
        key: tuple[Any, ...] = (x.shape, step.journal, torch.get_num_threads())
        operands, strengths = None, list[list[float]]()
        if step.route and (found := self._weights.routes.operands(step.route)).acting:
            operands, (strengths, alike) = found, found.strengths(step.route)
            key = *key, found.kind, alike
        if key not in self._known:
            while len(self._known) >= MOST:
                self._known.pop(next(iter(self._known)), None)
            self._known[key] = None
            if key[:2] not in self._expected:
                return None
        replay = self._known[key] = self._known.pop(key, None)  # now the last to go
        if replay is None:
            if not whole(ready(state.leaves, x.shape[1]).values()):
                return None
            about = self._weights.tensors, operands, self._layouts, self._weights.why
            replay = self._known[key] = Recorded(forward, x, state.leaves, step, *about)
            pages.trim()  # of what it made, a whole state too
        return replay(x, state.leaves, step, operands, strengths)


def _recordable(x: Tensor, step: Step) -> bool:
    return (
        x.shape[1] <= TOKENS
        and x.dtype is torch.float32
        and x.is_cpu
        and step.lengths is None
        and step.tree is None
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not ops.only_references()
        and not _eager.get()
        and native.library() is not None
    )
