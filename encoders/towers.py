"""Which vision tower a published family has; a file per tower, imported when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from fluvial.adapters.lora import Route
from fluvial.adapters.weights import Plan
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


def build(config: dict[str, Any]) -> tuple[nn.Module, Plan] | None:
    """The tower that a config.json describes, without weights, and where its tensors go; None for a text-only model."""
    name = f"fluvial.encoders.{config['model_type']}"
    if "vision_config" not in config or importlib.util.find_spec(name) is None:
        return None
    family: Any = importlib.import_module(name)
    return family.from_config(config), family.plan
