"""Which vision tower a published family has; a file per tower, imported when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from fluvial.adapters.lora import Route
from fluvial.encoders.frame import Frame


class Encoder(Protocol):
    """A vision tower with its projector. `frames_per_step` video frames make one step of tokens."""

    frames_per_step: int

    def encode(self, frames: Sequence[Frame], route: Route | None = None, *, video: bool) -> Tensor:
        """Frames -> embeddings [images, or video steps; tokens; d_model]."""
        ...

    def tokens(self, video: bool) -> int:
        """Tokens of an image or of one video step, at most."""
        ...


def build(config: dict[str, Any]) -> nn.Module | None:
    """The tower that a config.json describes, with fresh weights; None for a text-only model."""
    name = f"fluvial.encoders.{config['model_type']}"
    if "vision_config" not in config or importlib.util.find_spec(name) is None:
        return None
    module: nn.Module = importlib.import_module(name).from_config(config)
    return module


def rename(name: str) -> str | None:
    """Name on disk -> name in the tower."""
    return name.removeprefix("vision.") if name.startswith("vision.") else None
