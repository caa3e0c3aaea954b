"""`Recorded`: one forward of a few tokens as a program (adapters/recording.py), and what it takes to run it on another
input, state and route of the same shapes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fluvial.adapters.operands import AMBIGUOUS, Operands
from fluvial.adapters.recording import NotRecordable, Program, Recording, Span, extent
from fluvial.models.journal import Final, Pending
from fluvial.models.mixer import Step
from fluvial.models.packed_leaves import Layout, PackedLeaves
from fluvial.models.state import Leaf
from fluvial.models.tape import Tape
from fluvial.models.tapes import Tapes

Forward = Callable[[Tensor, Mapping[str, Leaf], Step], tuple[Tensor, dict[str, Pending]]]
Result = tuple[Tensor, dict[str, Pending] | PackedLeaves]
Maker = Callable[[list[Tensor], Mapping[str, Leaf]], Any]


class _Heard(Step):
    """A step whose numbers a recording must not see, other than through `memo`."""

    plain: Step
    recording: Recording
    memos: list[tuple[Callable[[Step], Any], Any]]

    @classmethod
    def of(cls, step: Step, recording: Recording) -> _Heard:
        heard = cls(**{f.name: getattr(step, f.name) for f in fields(Step)})
        heard.plain, heard.recording, heard.memos = step, recording, []
        return heard

    def memo(self, key: Hashable, make: Callable[[Step], Any]) -> Any:
        if key not in self._memo:
            with self.recording.paused():
                self._memo[key] = make(self.plain)
            self.memos.append((make, self._memo[key]))
        return self._memo[key]

    @property
    def positions(self) -> Tensor:
        raise NotRecordable("a mixer computes with positions")

    @property
    def rotary(self) -> Tensor:
        raise NotRecordable("a mixer computes with positions")


class Recorded:
    """One recorded forward; `why` it could not be recorded, if so."""

    def __init__(
        self,
        forward: Forward,
        x: Tensor,
        leaves: Mapping[str, Leaf],
        step: Step,
        weights: Sequence[Tensor],
        operands: Operands | None,
        layouts: dict[Layout, Layout],
        why: str,
    ) -> None:
        """Runs the forward, unless there is a reason not to. States of one layout share its spare memory: `layouts` are
        those known."""
        self.why = why
        if why:
            return
        try:
            leaves, x = ready(leaves, x.shape[1]), x.contiguous()
            recording = Recording()
            heard = _Heard.of(step, recording)
            with recording.listening():
                hidden, pending = forward(x, leaves, heard)
            after = {name: one.value for name, one in pending.items() if isinstance(one, Final)}
            tensors = tuple((name, leaf.shape, leaf.dtype) for name, leaf in leaves.items() if isinstance(leaf, Tensor))
            layout = Layout(tuple(leaves), tensors)
            self._layout = layouts.setdefault(layout, layout)
            self._memos = [(make, [t.stride() for t in _tensors(value)]) for make, value in heard.memos]
            moving = [extent(x), *(extent(t) for _, value in heard.memos for t in _tensors(value))]
            moving += [extent(leaf) for leaf in leaves.values() if isinstance(leaf, Tensor)]
            found = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tape)}
            tapes = Tapes.of(list(found.values()))
            if tapes is None:
                raise NotRecordable("tapes differ in their lengths")
            self._tapes, self._which = list(found), tapes.places.which
            moving += [extent(rows) for tape in found.values() for rows in tape.stores]
            told = [list[Span]() for _ in tapes.places.steps]
            for tape, which in zip(found.values(), self._which, strict=True):
                told[which] += [_extent(values) for values, about in recording.described if about is tape.stores[0]]
            kept = _Kept(recording)
            self._hidden = kept.maker(hidden, leaves)
            self._pending: dict[str, Maker] | None = None
            if step.journal:
                self._pending = {name: kept.maker(one, leaves) for name, one in pending.items()}
            else:
                for name, shape, dtype in tensors:
                    leaf = after[name]
                    if not isinstance(leaf, Tensor) or (leaf.shape, leaf.dtype) != (shape, dtype):
                        raise NotRecordable("a leaf changes its shape")
                    if kept.add(leaf) != len(kept.tensors) - 1 or leaf.numel() != kept.tensors[-1].numel():
                        raise NotRecordable("a leaf is not a piece of memory of its own")
            self._kept = [(t.shape, t.dtype) for t in kept.tensors]
            spans, plugins = [[one] for one in moving] + told, list[Tensor]()
            if operands is not None:
                spans += _strengths(recording, operands)
                plugins += operands.tensors
            self._program = Program(recording, spans, kept.tensors, weights, plugins)
        except NotRecordable as reason:
            self.why = str(reason)

    def __call__(
        self,
        x: Tensor,
        leaves: Mapping[str, Leaf],
        step: Step,
        operands: Operands | None,
        strengths: Sequence[Sequence[float]],
    ) -> Result | None:
        if self.why:
            return None
        x, layout, tokens = x.contiguous(), self._layout, x.shape[1]
        moving, held = [x.data_ptr()], list[Any]()
        for make, strides in self._memos:
            held.append(make(step))
            tensors = _tensors(held[-1])
            if [t.stride() for t in tensors] != strides:
                return None
            moving += [t.data_ptr() for t in tensors]
        if isinstance(leaves, PackedLeaves) and leaves.layout is layout:
            start = leaves.memory.data_ptr()
            moving += [start + at for at in layout.offsets]
            tapes = leaves.tapes.ready(tokens)
        else:
            for name, shape, dtype in layout.tensors:
                leaf = leaves[name]
                if not isinstance(leaf, Tensor) or (leaf.shape, leaf.dtype) != (shape, dtype):
                    return None
                held.append(leaf.contiguous())
                moving.append(held[-1].data_ptr())
            found = (leaves[name] for name in self._tapes)
            tapes = Tapes.of([leaf.ready(tokens) for leaf in found if isinstance(leaf, Tape)])
        if tapes is None or tapes.places.which != self._which:
            return None
        about, size = tapes.about(), 8 * (2 + x.shape[0])
        held.append(about)
        moving += tapes.places.addresses
        moving += [ctypes.addressof(about) + size * i for i in range(len(tapes.places.steps))]
        for values in strengths:
            held.append((ctypes.c_float * len(values))(*values))
            moving.append(ctypes.addressof(held[-1]))
        given = None if operands is None else operands.addresses
        if self._pending is not None:
            fresh = [torch.empty(shape, dtype=dtype) for shape, dtype in self._kept]
            self._program(moving, [t.data_ptr() for t in fresh], given)
            own = dict(leaves) | dict(zip(self._tapes, tapes.all(), strict=True))
            return self._hidden(fresh, own), {name: make(fresh, own) for name, make in self._pending.items()}
        shape, dtype = self._kept[0]
        hidden, memory = torch.empty(shape, dtype=dtype), layout.memory()
        start = memory.data_ptr()
        self._program(moving, [hidden.data_ptr(), *(start + at for at in layout.offsets)], given)
        return self._hidden([hidden], leaves), PackedLeaves(layout, memory, tapes.claim(tokens))


class _Kept:
    """What a forward made and gives out: new in every run."""

    def __init__(self, recording: Recording) -> None:
        self._made = {t.untyped_storage().data_ptr(): t for t in recording.made}
        self._places, self.tensors = dict[int, int](), list[Tensor]()

    def add(self, value: Tensor) -> int:
        """Its place among them."""
        start = value.untyped_storage().data_ptr()
        whole = self._made.get(start)
        if whole is None or not whole.is_contiguous():
            raise NotRecordable("a result is not a piece of memory of its own")
        if start not in self._places:
            self._places[start] = len(self.tensors)
            self.tensors.append(whole)
        return self._places[start]

    def maker(self, value: Any, leaves: Mapping[str, Leaf]) -> Maker:
        """How to make the same of another run's tensors and leaves."""
        for name, leaf in leaves.items():
            if value is leaf:
                return lambda fresh, leaves: leaves[name]
        if isinstance(value, nn.Parameter):
            return lambda fresh, leaves: value
        if isinstance(value, Tensor):
            at = self.add(value)
            size, stride, offset, whole = value.shape, value.stride(), value.storage_offset(), self.tensors[at]
            if whole.shape == size and whole.stride() == stride:
                return lambda fresh, leaves: fresh[at]
            return lambda fresh, leaves: fresh[at].as_strided(size, stride, offset)
        if isinstance(value, tuple):
            parts = [self.maker(one, leaves) for one in value]
            return lambda fresh, leaves: tuple(part(fresh, leaves) for part in parts)
        if is_dataclass(value):
            kind, own = value.__class__, [self.maker(getattr(value, f.name), leaves) for f in fields(value)]
            return lambda fresh, leaves: kind(*(part(fresh, leaves) for part in own))
        return lambda fresh, leaves: value


def _strengths(recording: Recording, operands: Operands) -> list[list[Span]]:
    """Where the strength of each plugin that acts was read."""
    spans: list[list[Span]] = [[] for _ in operands.acting]
    for values, about in recording.described:
        if (place := operands.owners.get(id(about))) is not None:
            if place == AMBIGUOUS:
                raise NotRecordable("plugins share a tensor")
            spans[place].append(_extent(values))
    return spans


def _extent(array: Any) -> Span:
    return ctypes.addressof(array), ctypes.sizeof(array)


def ready(leaves: Mapping[str, Leaf], tokens: int) -> dict[str, Leaf]:
    return {name: leaf.ready(tokens) if isinstance(leaf, Tape) else leaf for name, leaf in leaves.items()}


def whole(leaves: Iterable[Leaf]) -> bool:
    """Whether each tape lies in one store as its rows were given; a fork's may not."""
    return all(leaf.whole for leaf in leaves if isinstance(leaf, Tape))


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for one in value for t in _tensors(one)]
