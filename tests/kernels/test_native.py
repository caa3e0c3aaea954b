"""The library of kernels: opened where it was built, and a plain-torch install where it was not, with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fluvial.adapters import chips, native, ops
from fluvial.adapters.errors import UnsupportedError

WITHOUT = """
from pathlib import Path
from fluvial.adapters import chips, native, ops
from fluvial.models.decoder import BlockConfig, Decoder, DecoderConfig
import torch

native.installed = lambda: {path}
chips.load()
delta = BlockConfig("gated_delta", {{"heads": 2, "d_k": 8, "d_v": 8}})
with torch.no_grad():
    model = Decoder(DecoderConfig(vocab=16, d_model=16, blocks=(delta,)))
    model(model.embed(torch.tensor([[1, 2, 3]])))
status = native.status()
assert not status.loaded and native.library() is None
assert set(ops.explain().values()) == {{"torch reference"}}, ops.explain()
print(status.detail)
"""

RUNTIMES = """
from fluvial.adapters import native
import re
native.library()
print(*sorted(set(re.findall(r"/\\S*(?:libgomp|libiomp|libomp)\\S*", open("/proc/self/maps").read()))))
"""


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("path", ["None", "Path('/nowhere/_kernels.so')"])
def test_without_a_library_everything_runs_on_the_reference(path: str) -> None:
    assert "C++ kernels were not built" in _python(WITHOUT.format(path=path))


def test_a_damaged_or_foreign_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "_kernels.so"
    damaged.write_bytes(b"\x7fELF, or so it says")
    with pytest.raises(UnsupportedError, match="cannot be used"):
        native.open_library(damaged)
    if (library := native.library()) is not None:
        monkeypatch.setattr(native, "ABI", 10**6)
        with pytest.raises(UnsupportedError, match="belongs to another version"):
            native.open_library(library.path)


def test_each_cpu_gets_what_it_runs() -> None:
    assert native.runnable("DEFAULT") == native.runnable("SVE256") == ("baseline", "dotprod")  # each where compiled
    assert native.runnable("AVX2") == ("baseline", "dotprod", "avx2")
    assert native.runnable("AVX512") == native.runnable("AVX512_VNNI") == native.SETS


def test_loading_twice_registers_once() -> None:
    before = {name: len(op.kernels) for name, op in ops.registered().items()}
    chips.load()
    assert before == {name: len(op.kernels) for name, op in ops.registered().items()}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_kernels_and_torch_share_one_openmp_runtime() -> None:
    assert len(_python(RUNTIMES).split()) == 1


def test_kernels_are_there_where_they_are_required() -> None:
    if os.environ.get("FLUVIAL_REQUIRE_KERNELS", "").lower() in ("1", "true", "on", "yes"):
        assert native.status().loaded, native.status().detail
