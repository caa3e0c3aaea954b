"""What the tests of the faces share: a way to call the command line in this process, a small model, media files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from examples.pebble.tokens import END
from fluvial.cli.app import app
from tests.engine.tiny import write_model
from tests.media.media_files import cut, grey, index_first, write_video

Command = Callable[..., Result]


@pytest.fixture
def fluvial() -> Command:
    """`fluvial("run", "hello", stdin="")` as a user would type it; stdin is not a terminal."""

    def call(*words: object, stdin: str | bytes = "") -> Result:
        return CliRunner().invoke(app, [str(word) for word in words], input=stdin)

    return call


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recurrent model with random weights: its greedy answer never ends by itself."""
    return _endless(write_model(tmp_path_factory.mktemp("tiny"), "delta"))


@pytest.fixture(scope="session")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _endless(write_model(tmp_path_factory.mktemp("transformer"), "transformer"))


def _endless(folder: Path) -> Path:
    """The end token's logit is 0, which never is the largest of a thousand, however the others round."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embedding.weight"][END] = 0
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with image.png, broken.jpg, clip.mp4 and half.mp4, whose end is missing."""
    folder = tmp_path_factory.mktemp("media")
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(folder / "image.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"rubbish" * 50)
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), np.uint8)
    write_video(folder / "clip.mp4", [grey(i) for i in range(10)])
    cut(index_first(write_video(folder / "half.mp4", list(noise))), 0.5)
    return folder
