"""Compiles the CPU kernels for 64-bit ARM and has check.cpp compare their vectors with their plain form.

`make cross` and test_arm.py run it. The emulator stands in for a CPU without and one with products of bytes. Compilers:
aarch64-linux-gnu-g++, else zig (`pip install ziglang`); the emulator: qemu-aarch64 (Debian: g++-aarch64-linux-gnu,
qemu-user).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
KERNELS = HERE.parents[2] / "adapters" / "kernels"
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
ZIG = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-Wno-pass-failed"]
FLAGS = ["-std=c++17", "-O2", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Werror"]
ONCE = ("abi.cpp", "program.cpp", "threads.cpp")  # files without a set
CPUS = ("cortex-a72", "cortex-a76")
JOBS = min(2, os.cpu_count() or 1)


def compiler() -> list[str] | None:
    """The command of a compiler; None where there is none."""
    if shutil.which(COMPILER):
        return [COMPILER, *FLAGS]
    return [*ZIG, *FLAGS] if importlib.util.find_spec("ziglang") else None


def missing() -> str | None:
    """What of the compiler and the emulator is not here."""
    names = [COMPILER] if compiler() is None else []
    names += [EMULATOR] if shutil.which(EMULATOR) is None else []
    return f"no {' and no '.join(names)} here" if names else None


def compiled(command: list[str], to: Path) -> list[Path]:
    """Every kernel for every set, in object files."""
    bytes_too = "-mcpu=cortex_a76" if "ziglang" in command else "-march=armv8.2-a+dotprod"
    sets = {"plain": ["-DFLUVIAL_PLAIN"], "baseline": [], "dotprod": [bytes_too]}

    def one(job: tuple[Path, str]) -> Path:
        source, name = job
        made = to / f"{source.stem}.{name}.o"
        about = [f"-DFLUVIAL_SET={name}", '-DFLUVIAL_SETS="baseline,dotprod"', *sets[name]]
        subprocess.run([*command, *about, "-c", source, "-o", made], check=True)
        return made

    sources = sorted(KERNELS.glob("*.cpp"))
    jobs = [(source, name) for source in sources for name in (["baseline"] if source.name in ONCE else sets)]
    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(one, jobs))


def main() -> None:
    """Does as much as can be done here, and says what; raises `CalledProcessError` where something warns or differs."""
    lacking, command = missing(), compiler()
    if command is None:
        return print(f"Skipped: {lacking}.")
    with tempfile.TemporaryDirectory() as folder:
        objects, check = compiled(command, Path(folder)), Path(folder) / "check"
        if lacking:
            return print(f"The kernels compile for aarch64; not run: {lacking}.")
        subprocess.run([*command, "-static", HERE / "check.cpp", *objects, "-o", check], check=True)
        for cpu in CPUS:
            print(f"{cpu}:", flush=True)
            subprocess.run([EMULATOR, "-cpu", cpu, check], check=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode or 1)
