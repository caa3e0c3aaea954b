"""The compiled kernels: finds the library beside this package, checks it and opens it with ctypes.

An install without a compiler has no library; then every op runs its torch reference and `status()` says why.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch  # before the library: it brings the one OpenMP runtime that both use

from fluvial.adapters.errors import UnsupportedError

ABI = 8  # as in kernels/abi.cpp
SETS = ("baseline", "dotprod", "avx2", "avx512", "avx512vnni")  # narrowest first; each copy's suffix
ASKED = {"dotprod": "fluvial_dotprod", "avx512vnni": "fluvial_vnni"}  # of the library: torch does not tell
_recording: ContextVar[Recorder | None] = ContextVar("recording", default=None)


class Recorder(Protocol):
    """What hears of every call of a compiled function on its thread (adapters/recording.py)."""

    def call(self, function: Function, args: tuple[Any, ...]) -> None: ...
    def numbers(self, values: Any, about: torch.Tensor) -> None: ...


class Function:
    """A compiled kernel with its ctypes argument types."""

    __slots__ = ("_handle", "arguments", "instructions", "name", "run")

    def __init__(self, handle: ctypes.CDLL, name: str, instructions: str, arguments: Sequence[Any]) -> None:
        self._handle, self.name, self.instructions, self.arguments = handle, name, instructions, tuple(arguments)
        self.run = getattr(handle, f"fluvial_{name}_{instructions}")
        self.run.argtypes, self.run.restype = list(arguments), None

    def __call__(self, *args: Any) -> None:
        recorder = _recording.get()
        if recorder is not None:
            recorder.call(self, args)
        self.run(*args)

    @property
    def words(self) -> int | None:
        """The address of the same kernel with its arguments in an array; None where it has none."""
        found = getattr(self._handle, f"fluvial_{self.name}_words_{self.instructions}", None)
        return None if found is None else ctypes.cast(found, ctypes.c_void_p).value


def numbers(values: Sequence[int], about: torch.Tensor) -> Any:
    """int64 values for a kernel, about a tensor that it uses; the next call of the same shapes may have others."""
    return _told((ctypes.c_int64 * len(values))(*values), about)


def floats(values: Sequence[float], about: torch.Tensor) -> Any:
    """As `numbers`, in fp32."""
    return _told((ctypes.c_float * len(values))(*values), about)


def _told(array: Any, about: torch.Tensor) -> Any:
    recorder = _recording.get()
    if recorder is not None:
        recorder.numbers(array, about)
    return array


@contextmanager
def heard(recorder: Recorder) -> Iterator[None]:
    """Inside, on this thread, the recorder hears every call."""
    token = _recording.set(recorder)
    try:
        yield
    finally:
        _recording.reset(token)


@dataclass(frozen=True)
class Library:
    """An open library and the instruction sets, narrowest first, that it was compiled for and this CPU runs."""

    path: Path
    handle: ctypes.CDLL
    sets: tuple[str, ...]

    def kernel(self, name: str, arguments: Sequence[Any]) -> Callable[[str | None], Function]:
        """Kernel `name` with its ctypes argument types: called with a set (None: the widest), gives the function."""
        functions: dict[str | None, Function] = {}
        for one in self.sets:
            functions[one] = functions[None] = Function(self.handle, name, one, arguments)
        return functions.__getitem__


@dataclass(frozen=True)
class Status:
    """What `fluvial doctor` prints about the kernels: on which instruction set they run, or why they do not."""

    loaded: bool
    detail: str
    path: Path | None = None


def runnable(capability: str) -> tuple[str, ...]:
    """The sets that a CPU of that capability may run, as torch names it: "DEFAULT" (ARM too), "AVX2", "AVX512"."""
    widest = 4 if capability.startswith("AVX512") else 2 if capability.startswith("AVX2") else 1
    return SETS[: widest + 1]


def open_library(path: Path | None) -> Library:
    """Opens the library at `path`, or raises an `UnsupportedError` that says what is wrong with it."""
    if path is None or not path.is_file():
        raise UnsupportedError(
            "The C++ kernels were not built.",
            "No compiler worked when Fluvial was installed." if path is None else f"There is no file {path}.",
            "Everything runs on plain torch, slower. Install a C++ compiler, then reinstall.",
        )
    try:
        handle = ctypes.CDLL(str(path))
        abi, compiled = handle.fluvial_abi, handle.fluvial_sets
    except (OSError, AttributeError) as error:
        raise UnsupportedError(f"{path} cannot be used.", f"{error}.", "Reinstall Fluvial.") from error
    if abi() != ABI:
        why = f"Its ABI is {abi()}, not {ABI}."
        raise UnsupportedError(f"{path} belongs to another version.", why, "Reinstall Fluvial.")
    compiled.restype = ctypes.c_char_p
    names = {s for s in compiled().decode().split(",") if s not in ASKED or getattr(handle, ASKED[s])()}
    return Library(path, handle, tuple(s for s in runnable(torch.backends.cpu.get_cpu_capability()) if s in names))


def installed() -> Path | None:
    """Where the installed library is; None if the install has none."""
    spec = importlib.util.find_spec("fluvial.adapters._kernels")
    return Path(spec.origin) if spec is not None and spec.origin else None


@cache
def _open() -> Library | UnsupportedError:
    try:
        return open_library(installed())
    except UnsupportedError as error:
        return error


def library() -> Library | None:
    """The installed kernels, opened once; None where they cannot be used, and `status()` says why."""
    found = _open()
    return found if isinstance(found, Library) else None


def status() -> Status:
    """Whether the kernels are in use, on which instruction set, or why not."""
    found = _open()
    if isinstance(found, Library):
        return Status(True, f"C++ kernels, {found.sets[-1]}", found.path)
    return Status(False, str(found))
