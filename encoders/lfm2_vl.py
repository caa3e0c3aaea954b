"""LFM2-VL (`model_type` lfm2_vl): a SigLIP 2 tower at a picture's own shape, and a projector that makes a token of
2 x 2 patches. Config, tensor names (`model.vision_tower.*`, `model.multi_modal_projector.*`), the words around a view.

The family has seen no videos: their frames are pictures one after the other, uncut, as its processor takes several
images without splitting. Letters: N views of one size, L = h x w patches, M decoder width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.adapters.linear import Linear
from fluvial.adapters.lora import Route
from fluvial.adapters.norm import LayerNorm
from fluvial.adapters.weights import Piece
from fluvial.encoders.frame import Frame
from fluvial.encoders.layout import Layout
from fluvial.encoders.lfm2_pixels import Cut, Tiling, cut, views
from fluvial.encoders.siglip import GELU, Siglip, SiglipConfig, patches, placed
from fluvial.encoders.towers import Tower

START, END, THUMBNAIL = "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"


@dataclass(frozen=True)
class Lfm2VisionConfig:
    """The tower, the projector (`d_hidden` wide, `gelu` "tanh" or "none"), and how pictures are cut."""

    siglip: SiglipConfig
    tiling: Tiling
    d_hidden: int
    d_model: int
    gelu: str = "none"
    bias: bool = True
    norm: bool = True


class Lfm2Vision(Tower):
    """Pixels to decoder embeddings."""

    frames_per_step = 1

    def __init__(self, config: Lfm2VisionConfig) -> None:
        super().__init__()
        merged = config.tiling.merge**2 * config.siglip.width
        self.config, self.siglip = config, Siglip(config.siglip)
        self.norm = LayerNorm(merged) if config.norm else None
        self.up = Linear(merged, config.d_hidden, bias=config.bias)
        self.down = Linear(config.d_hidden, config.d_model, bias=config.bias)

    def forward(self, pictures: Tensor, route: Route | None = None) -> Tensor:
        """pictures [N, 3, H, W] -> embeddings [N, L / 4, M]."""
        patch, merge = self.config.siglip.patch, self.config.tiling.merge
        height, width = (side // patch for side in pictures.shape[2:])
        x = patches(pictures.to(self.siglip.table), patch)
        x = self.siglip(x, self.siglip.stretched((height, width)), route)
        x = rearrange(x, "n (h a w b) d -> n (h w) (a b d)", h=height // merge, a=merge, b=merge)
        x = x if self.norm is None else self.norm(x)
        return self.down(F.gelu(self.up(x, route), approximate=self.config.gelu), route)

    @torch.no_grad()
    def encode(
        self, frames: Sequence[Frame], route: Route | None = None, *, video: bool, total: int | None = None
    ) -> list[Tensor]:
        """Frames of any sizes -> embeddings [tokens, M] of each step: an image's tiles in reading order and the whole
        of it, or a video's frames. Errors: UsageError for no frames, or a picture far too long for its width."""
        steps: list[Tensor] = []
        for frame, plan in zip(frames, self._cuts(frames, video), strict=True):
            for pictures in views(frame, plan, self.config.tiling):
                steps += self(pictures, route)
        return steps

    def layout(self, frames: Sequence[Frame], *, video: bool, total: int | None = None) -> list[Layout]:
        """The words around each step of `encode`."""
        return [layout for plan in self._cuts(frames, video) for layout in self._words(plan)]

    def tokens(self, video: bool) -> int:
        """Tokens of an image or of one frame, at most."""
        tiling = self.config.tiling
        return tiling.most + (0 if video else tiling.tiles[1] * tiling.tile_tokens)

    def _cuts(self, frames: Sequence[Frame], video: bool) -> list[Cut]:
        if not frames:
            raise UsageError("No frames to encode.")
        return [cut(frame.height, frame.width, self.config.tiling, split=not video) for frame in frames]

    def _words(self, plan: Cut) -> list[Layout]:
        before = [f"<|img_row_{at // plan.columns + 1}_col_{at % plan.columns + 1}|>" for at in range(plan.tiles)]
        before += [THUMBNAIL] if plan.tiles and self.config.tiling.thumbnail else []
        if not self.config.tiling.marks:
            return [Layout()] * max(1, len(before))
        if not before:
            return [Layout(None, (START,), (END,))]
        last = len(before) - 1
        return [
            Layout(None, (word,) if at else (START, word), (END,) if at == last else ())
            for at, word in enumerate(before)
        ]


def from_config(config: dict[str, Any]) -> Lfm2Vision:
    """The tower of a config.json; `processor` in it holds what processor_config.json says. Errors: UnsupportedError for
    an option that is not implemented."""
    vision, act = config["vision_config"], config.get("projector_hidden_act", "gelu")
    unknown = {
        "projector_hidden_act": act not in GELU,
        "vision_feature_layer": config.get("vision_feature_layer", -1) != -1,
    }
    for option in (name for name, wrong in unknown.items() if wrong):
        raise UnsupportedError(f"LFM2-VL with {option} = {config[option]!r:.80} is not supported yet.")
    siglip = SiglipConfig.read(vision, vision.get("num_patches", 256))
    return Lfm2Vision(
        Lfm2VisionConfig(
            siglip,
            Tiling.read(config.get("processor") or {}, siglip.patch, config.get("downsample_factor", 2)),
            d_hidden=config.get("projector_hidden_size", 2560),
            d_model=config["text_config"]["hidden_size"],
            gelu=GELU[act],
            bias=config.get("projector_bias", True),
            norm=config.get("projector_use_layernorm", True),
        )
    )


_PROJECTOR = {
    "layer_norm.weight": Piece("norm.gain", optional=True),
    "layer_norm.bias": Piece("norm.shift", optional=True),
    **{
        f"linear_{i}.{leaf}": Piece(f"{ours}.{leaf}")
        for i, ours in ((1, "up"), (2, "down"))
        for leaf in ("weight", "bias")
    },
}


def plan(name: str) -> list[Piece] | None:
    """Where a tensor on disk goes. The tower's pooling head is left out; some releases hold a projector norm that they
    do not use."""
    if (inner := name.removeprefix("model.multi_modal_projector.")) in _PROJECTOR:
        return [_PROJECTOR[inner]]
    if (tower := re.fullmatch(r"model\.vision_tower\.(?:vision_model\.)?(.+)", name)) is None:
        return None
    return [] if tower[1].startswith("head.") else placed(tower[1], "siglip")
