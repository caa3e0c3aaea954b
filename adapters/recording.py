"""Recordings: the compiled kernels that one forward calls, in order, to be run again by a single call.

While a forward runs, a `Recording` hears every call of a compiled kernel and every torch operation. Views and
allocations cost nothing later; copies, sums and products become calls of `elements`, which rounds as torch does;
anything else makes the forward not recordable, so nothing can be left out unseen. A `Program` is what was heard, with
each address told apart: weights stay where they are, inputs and results lie elsewhere in every run, and all between
shares one piece of memory.
"""

from __future__ import annotations

import ctypes
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fluvial.adapters import native

TOKENS = 16  # a longer forward is not dominated by Python, and not recorded
MOST = 64  # words of a call, as in kernels/program.cpp
COPY, ADD, MULTIPLY, SCALE, RELU, SQUARE = range(6)  # as in kernels/elements.cpp
ALIGNED = 64  # bytes
FIXED, SCRATCH, MOVING = range(3)  # bases: 0, the memory between, and from there on what moves

_aten = torch.ops.aten
_EMPTY = (_aten.empty, _aten.empty_like, _aten.new_empty, _aten.empty_strided, _aten.new_empty_strided)
_POINTER, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class NotRecordable(Exception):
    """A forward did something that no compiled kernel does."""


@dataclass(frozen=True)
class Call:
    """A compiled kernel and its arguments; `pointers[i]` says that argument i is an address."""

    kernel: int
    words: tuple[int, ...]
    pointers: tuple[bool, ...]


@cache
def _elements() -> native.Function:
    library = native.library()
    assert library is not None
    return library.kernel("elements", [_POINTER] * 3 + [_SIZE, _FLOAT] + [_SIZE] * 12)(None)


class Recording(TorchDispatchMode):
    """Hears a forward inside `listening()`. `made`: what was allocated; `described`: what `native.numbers` was asked
    for, and about which tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.made = list[Call](), list[Tensor]()
        self.described = list[tuple[Any, Tensor]]()
        self._paused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the first operation heard would import torch's compiler: 75 MB

    @contextmanager
    def listening(self) -> Iterator[None]:
        with self, native.heard(self):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, what torch does is not part of the recording: its result is an input."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def call(self, function: native.Function, args: tuple[Any, ...]) -> None:
        kernel = function.words
        if kernel is None or self._paused or len(args) > MOST:
            raise NotRecordable(f"{function.name} cannot be recorded")
        pointers = tuple(kind is _POINTER for kind in function.arguments)
        words = tuple(map(_word, args, function.arguments))
        self.calls.append(Call(kernel, words, pointers))

    def numbers(self, values: Any, about: Tensor) -> None:
        self.described.append((values, about))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._paused:
            with self:  # inference mode brings whole ones: heard by their parts
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if self._paused or func.is_view:
            return result
        if func.overloadpacket in _EMPTY:
            self.made.append(result)
        elif (step := _STEPS.get(func)) is not None:
            self.made.append(result)
            step(self, result, *args, **kwargs)
        else:
            raise NotRecordable(f"{func} has no compiled kernel")
        return result

    def step(self, kind: int, y: Tensor, a: Tensor, b: Tensor | None = None, factor: float = 1.0) -> None:
        """y = a and b by `kind`, broadcast."""
        given = [t.expand(y.shape) for t in (a, a if b is None else b)] + [y]
        if any(t.dtype is not torch.float32 or not t.is_cpu for t in given):
            raise NotRecordable("only fp32 on the CPU is recorded")
        sizes, steps = _merged(y.shape, [t.stride() for t in given])
        pointers = [t.data_ptr() for t in given]
        self.call(_elements(), (*pointers, kind, factor, *sizes, *(n for one in steps for n in one)))


def _word(value: Any, kind: Any) -> int:
    if kind is _FLOAT:
        return int(struct.unpack("<I", struct.pack("<f", value))[0])
    if isinstance(value, ctypes.Array):
        return ctypes.addressof(value)
    return 0 if value is None else int(value)


def _merged(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """The same walk in exactly three dimensions: neighbours that step alike become one."""
    sizes, steps = list[int](), [list[int]() for _ in strides]
    for i, size in enumerate(shape):
        if size == 1:
            continue
        if sizes and all(one[-1] == stride[i] * size for one, stride in zip(steps, strides, strict=True)):
            sizes[-1] *= size
            for one, stride in zip(steps, strides, strict=True):
                one[-1] = stride[i]
        else:
            sizes.append(size)
            for one, stride in zip(steps, strides, strict=True):
                one.append(stride[i])
    missing = 3 - len(sizes)
    if missing < 0:
        raise NotRecordable(f"{len(sizes)} dimensions that do not step alike")
    return [1] * missing + sizes, [[0] * missing + one for one in steps]


def _add(to: Recording, y: Tensor, a: Tensor, b: Any, *, alpha: float = 1) -> None:
    if not isinstance(b, Tensor):
        raise NotRecordable("a sum with a number")
    to.step(ADD, y, a, b, float(alpha))


def _multiply(to: Recording, y: Tensor, a: Tensor, b: Any) -> None:
    if isinstance(b, Tensor):
        to.step(MULTIPLY, y, a, b)
    else:
        to.step(SCALE, y, a, None, float(b))


def _power(to: Recording, y: Tensor, a: Tensor, exponent: float) -> None:
    if exponent != 2:
        raise NotRecordable("a power that is no square")
    to.step(SQUARE, y, a)


def _cat(to: Recording, y: Tensor, parts: Sequence[Tensor], dim: int = 0) -> None:
    at = 0
    for part in parts:
        to.step(COPY, y.narrow(dim, at, part.shape[dim]), part)
        at += part.shape[dim]


_STEPS: dict[Any, Callable[..., None]] = {
    _aten.add.Tensor: _add,
    _aten.mul.Tensor: _multiply,
    _aten.relu.default: lambda to, y, a: to.step(RELU, y, a),
    _aten.pow.Tensor_Scalar: _power,
    _aten.clone.default: lambda to, y, a, memory_format=None: to.step(COPY, y, a),
    _aten.cat.default: _cat,
}


@dataclass
class _Region:
    start: int
    end: int
    base: int
    at: int = 0  # in SCRATCH: from its start
    first: int = -1  # the calls between which it is in use
    last: int = -1


Span = tuple[int, int]  # start, bytes


class Program:
    """A recording that can be run again. Words that point into the spans `moving[i]` are counted from their starts: in
    later runs these are one; `kept` tensors are new in every run and follow them; then come the `operands`, which
    change seldom; every other address is that of one of the `fixed` tensors."""

    def __init__(
        self,
        recording: Recording,
        moving: Sequence[Sequence[Span]],
        kept: Sequence[Tensor],
        fixed: Iterable[Tensor],
        operands: Sequence[Tensor] = (),
    ) -> None:
        spans = [(MOVING + i, span) for i, some in enumerate(moving) for span in some]
        behind = MOVING + len(moving) + len(kept)
        spans += [(behind + i, extent(t)) for i, t in enumerate(operands)]
        regions = [_Region(start, start + size, base) for base, (start, size) in spans]
        fresh = {_start(t): MOVING + len(moving) + i for i, t in enumerate(kept)}
        for t in recording.made:
            start = _start(t)
            regions.append(_Region(start, start + t.untyped_storage().nbytes(), fresh.get(start, SCRATCH)))
        regions += [_Region(t.data_ptr(), t.data_ptr() + extent(t)[1], FIXED) for t in fixed]
        regions = sorted((r for r in regions if r.end > r.start), key=lambda r: r.start)
        starts, found = [r.start for r in regions], list[list[_Region | None]]()
        for i, call in enumerate(recording.calls):
            found.append([])
            for word, pointer in zip(call.words, call.pointers, strict=True):
                region = None
                if pointer and word:
                    region = regions[bisect_right(starts, word) - 1]
                    if not region.start <= word < region.end:
                        raise NotRecordable("a kernel was given memory of an unknown owner")
                    region.first, region.last = (i if region.first < 0 else region.first), i
                found[-1].append(region)
        self.scratch = _placed([r for r in regions if r.base == SCRATCH and r.first >= 0])
        code, self.calls = list[int](), len(recording.calls)
        for call, owners in zip(recording.calls, found, strict=True):
            code += [call.kernel, len(call.words)]
            for word, region in zip(call.words, owners, strict=True):
                base = FIXED if region is None else region.base
                code += [base, word if region is None or base == FIXED else word - region.start + region.at]
        self._code, self._bases = (ctypes.c_int64 * len(code))(*code), _SIZE * (behind + len(operands))
        self._operands = 8 * behind
        library = native.library()
        assert library is not None
        self._run = library.handle.fluvial_run_program
        self._run.argtypes, self._run.restype = [_POINTER, _SIZE, _POINTER], None

    def __call__(self, moving: Iterable[int], kept: Iterable[int], operands: Any = None) -> None:
        """Runs it with these addresses of what moves, of the new tensors, and an array of those of the operands."""
        scratch = torch.empty(self.scratch, dtype=torch.uint8)
        bases = self._bases(0, scratch.data_ptr(), *moving, *kept)
        if operands is not None:
            ctypes.memmove(ctypes.addressof(bases) + self._operands, operands, ctypes.sizeof(operands))
        self.call(bases)

    def call(self, bases: Any) -> None:
        """The native part of a run."""
        self._run(self._code, self.calls, bases)


def extent(t: Tensor) -> Span:
    """Where a tensor begins, and its bytes up to the last value."""
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), (last + 1) * t.element_size() if t.numel() else 0


def _start(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _placed(regions: Sequence[_Region]) -> int:
    """Gives each a place in shared memory where it meets no other that is in use meanwhile; how much memory that is."""
    live, most = list[_Region](), 0
    for region in sorted(regions, key=lambda r: r.first):
        live = [other for other in live if other.last >= region.first]
        size = region.end - region.start
        for other in sorted(live, key=lambda r: r.at):
            if region.at + size <= other.at:
                break
            region.at = max(region.at, other.at + -(-(other.end - other.start) // ALIGNED) * ALIGNED)
        live.append(region)
        most = max(most, region.at + size)
    return most
