"""The kernels for 64-bit ARM, under an emulator: their vectors give what the plain form gives (arm/check.cpp)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

CROSS = Path(__file__).parent / "arm" / "cross.py"


def test_vectors_give_what_the_plain_form_gives() -> None:
    spec = importlib.util.spec_from_file_location("cross", CROSS)
    assert spec and spec.loader
    cross = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cross)
    if lacking := cross.missing():
        pytest.skip(lacking)
    done = subprocess.run([sys.executable, CROSS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "baseline and dotprod against the plain form: 0 wrong" in done.stdout
