"""Idefics3's eyes (`model_type` idefics3; SmolVLM too): SigLIP over squares of a picture, one matrix into the decoder.

Every square is a step of its own with its place in words around it, and the whole picture comes last. The projector
lays `merge` x `merge` neighbouring patches end to end ("pixel shuffle"), so that a square costs few tokens.

Letters: N squares, L patches, D tower width, M decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.adapters.linear import Linear
from fluvial.adapters.lora import Route
from fluvial.adapters.weights import Piece
from fluvial.encoders.frame import Frame
from fluvial.encoders.idefics3_tiles import Tiling
from fluvial.encoders.layout import Layout
from fluvial.encoders.siglip import Siglip, SiglipConfig, patches, placed
from fluvial.encoders.towers import Tower

AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"
_VISION = {  # what a nested config leaves out
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
}


@dataclass(frozen=True)
class Idefics3VisionConfig:
    """The tower's shape, the decoder's width, the patches merged along each side, how pictures are cut."""

    d_model: int
    siglip: SiglipConfig
    merge: int
    tiling: Tiling

    @classmethod
    def read(cls, config: dict[str, Any]) -> Idefics3VisionConfig:
        """From a config.json with its `processor`. Errors: UnsupportedError, ValueError."""
        vision = {**_VISION, **config["vision_config"]}
        if not isinstance(vision["image_size"], int):
            raise UnsupportedError(
                f"A vision tower with image_size = {vision['image_size']!r:.80} is not supported yet."
            )
        siglip = SiglipConfig.read(vision, (vision["image_size"] // int(vision["patch_size"])) ** 2)
        merge, processor = int(config.get("scale_factor", 2)), config.get("processor") or {}
        tiling = Tiling.read(processor.get("image_processor") or processor)
        if merge < 1 or tiling.side < siglip.patch * merge or tiling.side // siglip.patch % merge:
            raise ValueError(f"squares of {tiling.side} pixels, patches of {siglip.patch}, {merge} of them merged")
        return cls(config["text_config"].get("hidden_size", 4096), siglip, merge, tiling)


class Idefics3Vision(Tower):
    """Pixels to decoder embeddings."""

    frames_per_step = 1
    reads: tuple[str, ...] = ("image",)

    def __init__(self, config: Idefics3VisionConfig) -> None:
        super().__init__()
        self.config, self.siglip = config, Siglip(config.siglip)
        self.proj = Linear(config.siglip.width * config.merge**2, config.d_model)

    def forward(self, squares: Tensor, route: Route | None = None) -> Tensor:
        """squares [N, 3, S, S] -> embeddings [N, tokens, M]."""
        patch, merge = self.config.siglip.patch, self.config.merge
        side = squares.shape[2] // patch  # a rest at the right and the lower edge is not seen
        x = patches(squares[..., : side * patch, : side * patch], patch)
        x = self.siglip(x, self.siglip.table[self._places(side)], route)
        return self.proj(rearrange(x, "n (h a w b) d -> n (h w) (a b d)", h=side // merge, a=merge, b=merge), route)

    @torch.no_grad()
    def encode(
        self, frames: Sequence[Frame], route: Route | None = None, *, video: bool, total: int | None = None
    ) -> Tensor:
        """Frames -> [all squares, tokens, M]. Raises `UsageError` for no frames, `UnsupportedError` for a video."""
        self._check(frames, video)
        squares = torch.cat([self.config.tiling.squares(frame.rgb) for frame in frames])
        return self(squares.to(self.siglip.table), route)

    def layout(self, frames: Sequence[Frame], *, video: bool, total: int | None = None) -> list[Layout]:
        """The words around each square."""
        self._check(frames, video)
        return [layout for frame in frames for layout in around(*self.config.tiling.grid(frame.height, frame.width))]

    def tokens(self, video: bool) -> int:
        """Tokens of a square; a picture has as many of them as it is cut into, and the whole."""
        return (self.config.tiling.side // self.config.siglip.patch // self.config.merge) ** 2

    def _check(self, frames: Sequence[Frame], video: bool) -> None:
        if not frames:
            raise UsageError("No frames to encode.")
        if video and "video" not in self.reads:
            raise UnsupportedError("This model reads images, but no videos.", hint="Push single frames as images.")

    def _places(self, side: int) -> Tensor:
        """Rows of the table for side x side patches, int64 [L]: both grids cover the square from 0 to 1, and a patch
        takes the cell in which it begins. In fp32 as published: rounding decides on the border of two cells."""
        cells, device = self.config.siglip.side, self.siglip.table.device
        borders = torch.arange(1 / cells, 1.0, 1 / cells, dtype=torch.float32, device=device)
        begins = torch.arange(side, dtype=torch.float32, device=device) * (1.0 / torch.tensor(side, device=device))
        cell = torch.bucketize(begins.clamp(max=1.0 - 1e-6), borders, right=True)
        return (cell[:, None] * cells + cell).flatten()


def around(rows: int, columns: int) -> list[Layout]:
    """The words around a picture's squares: fake token, place, square; a line per row; an empty line, the whole."""
    whole = Layout(before=(AROUND, WHOLE), after=(AROUND,))
    if rows * columns == 1:
        return [whole]
    squares = [
        Layout(before=(*["\n"][: row > 1 and column == 1], AROUND, f"<row_{row}_col_{column}>"))
        for row in range(1, rows + 1)
        for column in range(1, columns + 1)
    ]
    return [*squares, Layout(before=("\n\n", AROUND, WHOLE), after=(AROUND,))]


def from_config(config: dict[str, Any]) -> Idefics3Vision:
    """The tower of a config.json. Errors: UnsupportedError for an option that is not implemented."""
    return Idefics3Vision(Idefics3VisionConfig.read(config))


def plan(name: str) -> list[Piece] | None:
    """Where a tensor on disk goes."""
    if name == "model.connector.modality_projection.proj.weight":
        return [Piece("proj.weight")]
    if name.startswith("model.vision_model."):
        return placed(name.removeprefix("model.vision_model."), "siglip")
    return None
