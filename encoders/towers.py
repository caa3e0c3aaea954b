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
from fluvial.encoders.layout import Layout, Viewing
from fluvial.encoders.video_reader import VideoReader


class Tower(nn.Module):
    """What most towers do; a family overrides what it does differently. `reads`: the kinds of media that it takes."""

    reads: tuple[str, ...] = ("image", "video")

    def viewing(self, source: VideoReader, *, fps: float | None, count: int | None, most: int | None) -> Viewing | None:
        """How to look at a video file; `fps`, `count` and `most` frames are the caller's wishes. None: by the clock, as
        `sample` does, and without words around it."""
        return None


class Encoder(Protocol):
    """A vision tower with its projector. `frames_per_step` video frames make one step of tokens."""

    frames_per_step: int
    reads: tuple[str, ...]

    def viewing(self, source: VideoReader, *, fps: float | None, count: int | None, most: int | None) -> Viewing | None:
        """As `Tower.viewing`."""
        ...

    def encode(
        self, frames: Sequence[Frame], route: Route | None = None, *, video: bool, total: int | None = None
    ) -> Tensor | list[Tensor]:
        """Frames -> embeddings [images, or video steps; tokens; d_model]; a list of steps [tokens; d_model] where an
        image may give several of them, tiles of different sizes. `total`: about how many frames the whole video will
        have, the same for each part of it; some towers look at long videos in fewer pixels."""
        ...

    def layout(self, frames: Sequence[Frame], *, video: bool, total: int | None = None) -> list[Layout]:
        """How each step of `encode` enters the token stream."""
        ...

    def tokens(self, video: bool) -> int:
        """Tokens of an image or of one video step, at most."""
        ...


def build(config: dict[str, Any], processor: dict[str, Any] | None = None) -> tuple[Tower, Plan] | None:
    """The tower that a config.json describes, without weights, and where its tensors go; None for a text-only model.
    `processor`: what its processor_config.json says."""
    name = f"fluvial.encoders.{config['model_type']}"
    if "vision_config" not in config or importlib.util.find_spec(name) is None:
        return None
    family: Any = importlib.import_module(name)
    return family.from_config({**config, "processor": processor}), family.plan


def plan_of(config: dict[str, Any]) -> Plan:
    """Where the tensors of a config's tower go; it has one."""
    plan: Plan = importlib.import_module(f"fluvial.encoders.{config['model_type']}").plan
    return plan
