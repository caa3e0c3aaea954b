"""Pages of memory: huge ones for weights, one address translation for 2 MB instead of 4 KB, and freed ones given back.

A decode step reads every weight once, so with small pages it waits for translations as much as for memory: in a virtual
machine half of the read bandwidth goes that way.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

HUGE = 2 << 20
KEPT = 64 << 20  # bytes of freed memory that may lie about for the next allocation
LITTLE = 8 << 20  # the same once large pieces lie apart
HELD = 1 << 30  # the same until somebody asks `trim`
MAPPED = 32 << 20  # bytes: what is larger is always mapped alone; the C library takes no more
LARGE = 3 << 19  # bytes: more than a decode step allocates at once, less than a layer's memory of a large model
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
COLLAPSE = 25  # MADV_COLLAPSE, Linux 6.1: moves what is there already, at once

_allowed = [KEPT]  # by the process: `apart` changes it


def gather(tensors: Iterable[Tensor]) -> int:
    """Moves the memory of CPU tensors, values and addresses unchanged, into huge pages where the system has them.

    Not for mapped files, which it would read. Returns the bytes of the stretches that were moved: 0 where the system
    cannot, which costs speed alone. About 3 seconds for a gigabyte.
    """
    if sys.platform != "linux":
        return 0
    madvise = _madvise()
    stretches = ((start, end) for start, end in _stretches(tensors) if end // HUGE > -(-start // HUGE))
    return sum(end - start for start, end in stretches if not madvise(start, end - start, COLLAPSE))


def keep() -> None:
    """From now on, in this process, freed memory stays for the next allocation until `trim`: one layer needs what the
    layer before it did, and pages that go and come again take up to a third of a prompt's time. Not after `apart`."""
    if sys.platform == "linux" and _allowed[0] == KEPT and (mallopt := _mallopt()) is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED)
        mallopt(M_TRIM_THRESHOLD, HELD)


def apart() -> None:
    """From now on, in this process, what is as large as `LARGE` is mapped alone and goes back as soon as it is freed:
    pieces of all sizes, freed in another order, would leave holes of hundreds of MB. Faults for its pages each time.

    Holes that are there already (reading a large vocabulary leaves some) are taken and never touched, so that they hold
    no memory: the C library would put large pieces into them first."""
    if sys.platform == "linux" and (mallopt := _mallopt()) is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, KEPT)  # the other one's default would be tiny once the first is set
        trim(0)
        _take_holes()
        _allowed[:] = [LITTLE]


def trim(above: int | None = None) -> None:
    """Gives freed memory back to the system, where the C library keeps it, as glibc does below the newest block; only
    if it keeps more than `above` bytes, `KEPT` or after `apart` `LITTLE`."""
    if sys.platform != "linux" or (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is None:
        return
    above = _allowed[0] if above is None else above
    if not above or _kept() > above:
        malloc_trim(0)


def release(tensors: Iterable[Tensor], path: Path) -> int:
    """Lets go of the pages of CPU tensors that lie in the mapped file `path`, removed or not, which comes back when it
    is read: weights that are not in use need no memory. Nothing else is touched, and nobody may have written there.
    Returns the bytes of the stretches."""
    if sys.platform != "linux":
        return 0
    lines = (line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines())
    names = str(path.resolve()), f"{path.resolve()} (deleted)"
    mapped = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines if line[-1] in names]
    total, madvise = 0, _madvise()
    for start, end in _stretches(tensors):
        for low, high in mapped:
            first, last = max(start, low), min(end, high)
            if last > first and not madvise(first, last - first, mmap.MADV_DONTNEED):
                total += last - first
    return total


def _take_holes() -> None:
    """Allocates, for good, whatever is free and as large as `LARGE`."""
    library, size = ctypes.CDLL(None), 1 << 30
    library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    library.malloc.argtypes = [ctypes.c_size_t]
    while size >= LARGE and (before := _info()) is not None:
        piece = library.malloc(size)
        if not piece or (after := _info()) is None or after.mapped != before.mapped:  # no hole of that size
            library.free(piece)
            size = size * 7 // 8


class _Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "", "", "", "mapped", "", "", "used", "free", "top")]


def _kept() -> int:
    """Bytes that the C library keeps for the next allocation; those it gave back already may count again."""
    info = _info()
    return sys.maxsize if info is None else int(info.free)


def _info() -> _Mallinfo | None:
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return None
    mallinfo.restype = _Mallinfo
    info: _Mallinfo = mallinfo()
    return info


def _mallopt() -> Callable[[int, int], int] | None:
    return getattr(ctypes.CDLL(None), "mallopt", None)


def _madvise() -> Callable[[int, int, int], int]:
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise


def _stretches(tensors: Iterable[Tensor]) -> list[tuple[int, int]]:
    """The addresses of the tensors in whole pages, neighbours joined."""
    page, joined = mmap.PAGESIZE, list[list[int]]()
    places = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.is_cpu and t.nbytes]
    for start, end in sorted((start // page * page, -(-end // page) * page) for start, end in places):
        if joined and start <= joined[-1][1]:
            joined[-1][1] = max(end, joined[-1][1])
        else:
            joined.append([start, end])
    return [(start, end) for start, end in joined]
