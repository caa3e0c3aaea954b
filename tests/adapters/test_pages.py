"""Huge pages: where the system has them the memory moves; values and addresses never change."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fluvial.adapters import pages


def test_values_and_addresses_stay():
    tensors = [torch.arange(size) for size in (0, 1, 1 << 20, 3 << 18)] + [torch.ones(5, device="meta")]
    before = [(t.data_ptr(), t.tolist()) for t in tensors[:-1]]
    assert pages.gather(tensors) >= 0
    assert before == [(t.data_ptr(), t.tolist()) for t in tensors[:-1]]


def test_neighbours_are_joined_and_small_ones_left_out():
    whole = torch.zeros(8 << 20, dtype=torch.uint8)
    parts = [whole[start : start + (1 << 20)] for start in range(0, 8 << 20, 1 << 20)]
    ((start, end),) = pages._stretches(parts[::-1])
    assert start <= whole.data_ptr() and end >= whole.data_ptr() + whole.nbytes and end - start <= (8 << 20) + 8192
    assert pages.gather([whole[: 1 << 20], whole[3 << 20 : 4 << 20]]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_moved_lies_in_huge_pages():
    def huge() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages"))

    data, before = torch.zeros(16 << 20, dtype=torch.uint8), huge()
    if not pages.gather([data]):
        pytest.skip("no huge pages here")
    assert huge() - before >= 12 << 20


@pytest.mark.skipif(pages._kept() == sys.maxsize, reason="needs glibc")
def test_freed_memory_is_given_back_where_there_is_much_of_it():
    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

    pieces = [torch.zeros(24 << 10, dtype=torch.uint8) for _ in range(4000)]  # 96 MB, below what the system maps alone
    before = resident()
    pieces = pieces[::40]  # those that stay are in the way of the others
    pages.trim(1 << 40)
    assert before - resident() < 40 << 20
    pages.trim(40 << 20)
    assert before - resident() > 60 << 20
    assert not any(bool(piece.any()) for piece in pieces)


_HOLES = """
import sys, torch
from pathlib import Path
from fluvial.adapters import pages
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) >> 10
def used():
    torch.zeros(24 << 20, dtype=torch.uint8)  # glibc learns from it what may come from its heap
    before = resident()
    pairs = [(torch.ones(8 << 20, dtype=torch.uint8), torch.ones(99 << 10, dtype=torch.uint8)) for _ in range(12)]
    small = [pair[1] for pair in pairs]
    del pairs
    return resident() - before
print(used(), pages.apart() or used())
"""


@pytest.mark.skipif(pages._kept() == sys.maxsize, reason="needs glibc")
def test_large_pieces_apart_leave_no_holes():
    done = subprocess.run([sys.executable, "-c", _HOLES], capture_output=True, text=True, check=True)
    holes, apart = map(int, done.stdout.split())
    assert holes > 60 and apart < 20, done.stdout  # MB kept of 96


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_mapped_file_is_let_go_and_comes_back(tmp_path: Path):
    path, other = tmp_path / "a.bin", torch.full((4 << 20,), 7, dtype=torch.uint8)
    (torch.arange(8 << 20) % 251).to(torch.uint8).numpy().tofile(path)
    mapped = torch.from_file(str(path), shared=False, size=8 << 20, dtype=torch.uint8)
    whole = mapped.clone()  # all of it is read

    def resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile"))

    before = resident()
    assert pages.release([mapped, other], path) >= 8 << 20
    assert before - resident() >= 7 << 20
    assert torch.equal(mapped, whole) and bool((other == 7).all())
    assert pages.release([other], path) == pages.release([mapped], tmp_path / "b.bin") == 0


_FILLED = """
import torch
from pathlib import Path
from fluvial.adapters import pages
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) >> 10
def used():
    before = resident()
    for _ in range(4):
        large = torch.ones(24 << 20, dtype=torch.uint8)
        del large
    return resident() - before
torch.zeros(24 << 20, dtype=torch.uint8)  # glibc learns from it what may come from its heap
small = [torch.ones(64 << 10, dtype=torch.uint8) for _ in range(1600)]
small = small[-1:]  # a hole of 100 MB below it
pages.trim(0)
before, found = resident(), []
found.append(used())
pages.trim(0)
pages.apart()
found += [resident() - before, used()]
print(*found)
"""


@pytest.mark.skipif(pages._kept() == sys.maxsize, reason="needs glibc")
def test_large_pieces_do_not_go_into_holes():
    """Which are taken without touching them."""
    done = subprocess.run([sys.executable, "-c", _FILLED], capture_output=True, text=True, check=True)
    stays, taken, apart = map(int, done.stdout.split())
    assert stays >= 20 and taken < 4 and apart < 4, done.stdout  # MB


@pytest.mark.skipif(pages._kept() == sys.maxsize, reason="needs glibc")
def test_taking_holes_ends_where_memory_is_limited():
    """The C library then says no to a large piece, which is no hole either."""
    limited = (
        "import resource; from fluvial.adapters import pages\nresource.setrlimit(resource.RLIMIT_AS, (6 << 28,) * 2)"
    )
    subprocess.run([sys.executable, "-c", limited + "\npages.apart()"], check=True, timeout=60)


_KEPT = """
import resource, sys, torch
from fluvial.adapters import pages
def faults(rounds=8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        large = [torch.ones(6 << 20) for _ in range(4)]  # 24 MB each, 96 MB in all
        del large
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // rounds
pages.keep()
faults()
kept = faults()
pages.trim()
given_back = faults(1)
pages.apart()
pages.keep()
print(kept, given_back, faults())
"""


@pytest.mark.skipif(pages._kept() == sys.maxsize, reason="needs glibc")
def test_freed_memory_serves_the_next_layer_until_it_is_trimmed():
    """And not where large pieces lie apart."""
    done = subprocess.run([sys.executable, "-c", _KEPT], capture_output=True, text=True, check=True)
    kept, given_back, apart = map(int, done.stdout.split())
    pages_of_all = (96 << 20) // mmap.PAGESIZE
    assert kept < pages_of_all / 50 and given_back > pages_of_all / 2 and apart > pages_of_all / 2, done.stdout
