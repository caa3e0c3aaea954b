"""Weights that lie aside: the same values from a file without a name, which need no memory while nobody reads them."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
import torch

from fluvial.adapters import aside, pages
from fluvial.adapters.aside import Aside
from fluvial.adapters.recipes import recipe
from fluvial.engine import loading
from tests.engine.tiny import write_model

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
LARGE = torch.arange(1 << 20).view(torch.int16)  # 8 MB


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile"))


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@linux
def test_values_come_back_and_nothing_stays():
    files = open_files()
    kept = Aside(64 << 20)
    small, nothing = torch.arange(9.0), torch.zeros(0)
    assert kept.keep(small) is small and kept.keep(nothing) is nothing
    tensors = [kept.keep(LARGE), kept.keep(LARGE.float().view(2, -1, 512).transpose(0, 1)), kept.keep(LARGE[1:])]
    kept.close()
    assert not kept.path.exists() and kept.path.parent.is_dir()
    for _ in range(2):
        assert torch.equal(tensors[0], LARGE) and torch.equal(tensors[2], LARGE[1:])
        assert torch.equal(tensors[1], LARGE.float().view(2, -1, 512).transpose(0, 1))
        before, size = resident(), sum(t.nbytes for t in tensors)
        assert pages.release(tensors, kept.path) >= size
        assert before - resident() >= 0.9 * size
    del tensors, kept
    assert open_files() <= files


def test_without_room_they_stay_in_memory(monkeypatch):
    kept = Aside(64 << 20)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(aside.os, "pwrite", full)
    assert kept.keep(LARGE) is LARGE
    monkeypatch.undo()
    assert torch.equal(kept.keep(LARGE), LARGE)
    kept.close()
    narrow = Aside(LARGE.nbytes - 1)
    assert narrow.keep(LARGE) is LARGE
    narrow.close()
    monkeypatch.setattr(aside, "FOLDER", Path("/nowhere"))
    monkeypatch.setattr(aside.tempfile, "gettempdir", lambda: "/nowhere")
    for nowhere in (Aside(64 << 20), Aside(0)):
        assert nowhere.keep(LARGE) is LARGE and nowhere.path is None
        nowhere.close()


@pytest.mark.parametrize("quant", [None, "int8"])
def test_a_tower_that_is_quantized_while_loading_lies_aside(tmp_path, monkeypatch, quant):
    """All of it that is large, and nothing of what each token needs; and it says what it says in memory."""
    folder, chosen = write_model(tmp_path, "delta"), quant and recipe(quant)
    whole = loading.load_parts(folder, recipe=chosen)
    monkeypatch.setattr(aside, "LARGE", 1 << 12)
    kept, keep = set[int](), Aside.keep

    def noted(self, tensor):
        mapped = keep(self, tensor)
        kept.update({mapped.data_ptr()} if mapped is not tensor else ())
        return mapped

    monkeypatch.setattr(Aside, "keep", noted)
    parts = loading.load_parts(folder, recipe=chosen)
    large = {t.data_ptr() for t in loading.held(parts.tower) if t.nbytes >= 1 << 12}
    assert kept == (large if quant else set()) and (parts.mapped is not None) == bool(quant)
    for a, b in zip(loading.held(whole.tower), loading.held(parts.tower), strict=True):
        assert torch.equal(a, b)


@linux
@pytest.mark.parametrize("packed", [False, True])
def test_a_still_leaves_no_tower_in_memory(tmp_path, monkeypatch, packed):
    """Layer by layer: when one has run, its weights go."""
    from fluvial.engine.model import load_model
    from fluvial.engine.packing import pack
    from tests.engine.tiny import frames

    folder = write_model(tmp_path, "delta")
    plain = load_model(folder, quant="int8")
    if packed:
        pack(folder, tmp_path / "packed", "int8")
    monkeypatch.setattr(aside, "LARGE", 1 << 12)
    model = load_model(tmp_path / "packed") if packed else load_model(folder, quant="int8")
    released = list[str]()
    names = {t.data_ptr(): name for name, t in model.tower.state_dict().items()}
    release = pages.release

    def noted(tensors, path):
        tensors = list(tensors)
        released.append(names.get(tensors[0].data_ptr(), "another"))
        return release(tensors, path)

    monkeypatch.setattr(pages, "release", noted)
    pictures = frames(2)
    seen = [model.encode(pictures[:1], video=False), model.encode(pictures, video=True)]
    assert len(released) > 2 and len({name.split(".")[1] for name in released if name.startswith("blocks.")}) > 1
    for a, b in zip(seen, [plain.encode(pictures[:1], video=False), plain.encode(pictures, video=True)], strict=True):
        assert torch.equal(a, b)
