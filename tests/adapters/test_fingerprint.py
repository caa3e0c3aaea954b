"""A model's name by its content: computed when it is needed, never before, and another one where a weight differs."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fluvial.adapters import fingerprint
from fluvial.adapters.errors import IntegrityError
from fluvial.adapters.fingerprint import Fingerprint
from fluvial.engine.media import Image
from fluvial.engine.model import load_model
from fluvial.engine.packing import pack
from fluvial.engine.session import Session
from fluvial.models import decoder
from tests.engine.tiny import picture, write_model


def test_it_is_computed_once_and_only_when_needed():
    asked = []
    one, other = Fingerprint(lambda: asked.append(1) or "a"), Fingerprint(lambda: "a")
    twin = one
    assert one == twin and not asked
    assert one == other and one == "a" and one != "b" and hash(one) == hash("a") and one != 1
    assert asked == [1]
    assert copy.deepcopy(one) == "a" and asked == [1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return write_model(tmp_path / "model", "delta")


@pytest.mark.parametrize("packed", [False, True])
def test_a_model_is_loaded_and_asked_without_hashing_its_weights(folder, packed, tmp_path, monkeypatch):
    hashed = []

    def counted(to, module):
        hashed.append(1)
        fingerprint.add_tensors(to, module)

    monkeypatch.setattr(decoder, "add_tensors", counted)
    model = load_model(pack(folder, tmp_path / "packed", "int8") if packed else folder)
    session = Session(model)
    session.push(Image(picture(1)))
    list(session.fork().ask("What?", max_tokens=3))
    assert not hashed
    session.save(tmp_path / "a.session")
    assert hashed == [1]


@pytest.mark.parametrize("packed", [False, True])
def test_one_changed_bit_of_the_weights_is_another_model(folder, packed, tmp_path):
    """Of a matrix, of a vector, of the tower: in a file of the same size and time."""
    folder = pack(folder, tmp_path / "packed", "int8") if packed else folder
    path, model = folder / "model.safetensors", load_model(folder)
    session = Session(model)
    session.push("one two")
    session.save(tmp_path / "a.session")
    assert Session.load(load_model(folder), tmp_path / "a.session").position == session.position
    tensors, before = load_file(path), path.stat()
    matrix = next(name for name in tensors if "vision" not in name and tensors[name].ndim == 2)
    vector = next(name for name in tensors if "vision" not in name and tensors[name].ndim == 1)
    for name in (matrix, vector, next(name for name in tensors if "vision" in name)):
        changed = tensors[name].clone()
        changed.view(-1).view(torch.uint8)[0] ^= 1
        save_file(tensors | {name: changed}, path, {"format": "pt"})
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        other = load_model(folder)
        assert other.fingerprint() != model.fingerprint()
        with pytest.raises(IntegrityError, match="another model"):
            Session.load(other, tmp_path / "a.session")
        if "vision" not in name:
            with pytest.raises(IntegrityError, match="another model"):
                other.decoder.check(session.snapshot().feed.state)
