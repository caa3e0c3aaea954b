"""Compiles the CPU kernels for 64-bit ARM and has check.cpp compare their vectors with their plain form.

`make cross` and test_arm.py run it. The emulator stands in for a CPU without and one with products of bytes.

Needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user). With zig alone (`pip install
ziglang`) the kernels are compiled and not run.
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
FLAGS = ["-std=c++17", "-O2", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Werror"]
SETS = {"plain": ["-DFLUVIAL_PLAIN"], "baseline": [], "dotprod": ["-march=armv8.2-a+dotprod"]}
ONCE = ("abi.cpp", "program.cpp", "threads.cpp")  # files without a set
CPUS = ("cortex-a72", "cortex-a76")
JOBS = min(2, os.cpu_count() or 1)


def missing() -> str | None:
    """What of the compiler and the emulator is not here."""
    names = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
    return f"no {' and no '.join(names)} here" if names else None


def compiled(compiler: list[str], to: Path) -> list[Path]:
    """Every kernel for every set, in object files."""

    def one(source: Path, name: str) -> Path:
        made = to / f"{source.stem}.{name}.o"
        about = [f"-DFLUVIAL_SET={name}", '-DFLUVIAL_SETS="baseline,dotprod"', *SETS[name]]
        subprocess.run([*compiler, *about, "-c", source, "-o", made], check=True)
        return made

    jobs = [
        (source, name)
        for source in sorted(KERNELS.glob("*.cpp"))
        for name in SETS
        if source.name not in ONCE or name == "baseline"
    ]
    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(lambda job: one(*job), jobs))


def run() -> None:
    """Compiles and compares; a `CalledProcessError` where anything warns or differs."""
    with tempfile.TemporaryDirectory() as folder:
        objects, check = compiled([COMPILER, *FLAGS], Path(folder)), Path(folder) / "check"
        subprocess.run([COMPILER, *FLAGS, "-static", HERE / "check.cpp", *objects, "-o", check], check=True)
        for cpu in CPUS:
            print(f"{cpu}:", flush=True)
            subprocess.run([EMULATOR, "-cpu", cpu, check], check=True)


def main() -> None:
    """Does as much as can be done here, and says what."""
    if (lacking := missing()) is None:
        run()
    elif importlib.util.find_spec("ziglang"):
        with tempfile.TemporaryDirectory() as folder:
            zig = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu", "-Wno-pass-failed"]
            compiled([*zig, *FLAGS[:-2]], Path(folder))
        print(f"The kernels compile for aarch64; not run: {lacking}.")
    else:
        print(f"Skipped: {lacking}, no zig either.")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode or 1)
