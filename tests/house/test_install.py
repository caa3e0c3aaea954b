"""What an install is: a command that starts fast, and a wheel that holds the package and none of its build inputs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("models", "encoders", "engine", "adapters")
FOLDERS = {"fluvial": "api/fluvial"} | {f"fluvial/{room}": room for room in ROOMS}
HEAVY = {"torch", "numpy", "cv2", "PIL", "av", "tokenizers", "safetensors"}


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "fluvial", "--help"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr.splitlines()[-1]
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in shown.stderr.splitlines()}
    assert "typer" in loaded and "Usage" in shown.stdout
    assert not loaded & HEAVY, sorted(loaded & HEAVY)


def test_wheel_holds_the_package_and_no_build_inputs(tmp_path: Path) -> None:
    source = tmp_path / "source"  # a copy: the build folder of the checkout belongs to its own install
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, source / folder)
    expected = {
        f"{package}/{path.relative_to(source / folder).as_posix()}"
        for package, folder in FOLDERS.items()
        for path in (source / folder).rglob("*")
        if path.is_file() and not {"__pycache__", "kernels"} & set(path.relative_to(source).parts)
    }
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    command += ["--config-settings=cmake.build-type=Debug"]  # only what is inside matters here
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not re.match(r"fluvial-[^/]*\.dist-info/", name)}
    assert names - {"fluvial/adapters/_kernels.so"} == expected
    assert "fluvial/py.typed" in names and any("LICENSE" in name for name in zipfile.ZipFile(wheel).namelist())
    # without a compiler the wheel is pure Python
    assert wheel.name.endswith("-any.whl") != ("fluvial/adapters/_kernels.so" in names)
