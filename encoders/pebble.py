"""Pebble's vision tower: two consecutive frames in, a grid of tokens out.

Space-to-depth by 4, three convolutions down to one cell per 16 x 16 pixels, bidirectional blocks, a projector, and a
row + column position code. A still image is a pair of equal frames; in a video the pair is two consecutive samples, so
that motion shows inside one token. An image of any size is resized to the grid of at most 64 cells that is nearest to
its aspect ratio; video pairs are merged 2 x 2 to a quarter of the tokens, once or more.

Letters: N pairs, h x w grid cells, D tower width, M decoder width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fluvial.adapters.errors import UsageError
from fluvial.adapters.linear import Linear
from fluvial.adapters.lora import Route
from fluvial.adapters.module import initial
from fluvial.adapters.norm import LayerNorm
from fluvial.adapters.weights import Piece
from fluvial.encoders.blocks import Conv3x3, VisionBlock
from fluvial.encoders.frame import Frame
from fluvial.encoders.layout import Layout
from fluvial.encoders.towers import Tower

CELL = 16  # pixels per grid cell


@dataclass(frozen=True)
class PebbleVisionConfig:
    """`tokens` of an image, `video_tokens` of a pair of frames (tokens / 4^n); widths of tower and decoder."""

    d_model: int
    width: int = 192
    heads: int = 3
    depth: int = 2
    channels: tuple[int, int] = (64, 128)
    tokens: int = 64
    video_tokens: int = 16


class PebbleVision(Tower):
    """Pixels to decoder embeddings."""

    frames_per_step = 2

    def __init__(self, config: PebbleVisionConfig) -> None:
        super().__init__()
        self.config = config
        first, second = config.channels
        self.conv1, self.norm1 = Conv3x3(2 * 3 * 16, first), LayerNorm(first)
        self.conv2, self.norm2 = Conv3x3(first, second, stride=2), LayerNorm(second)
        self.conv3 = Conv3x3(second, config.width, stride=2)
        self.blocks = nn.ModuleList(
            VisionBlock(config.width, config.heads, 3 * config.width) for _ in range(config.depth)
        )
        self.merge = Linear(4 * config.width, config.width)
        self.norm = LayerNorm(config.width)
        self.projector = Linear(config.width, config.d_model, bias=True)
        side = math.isqrt(config.tokens)
        self.rows, self.columns = (nn.Parameter(torch.empty(side, config.width)) for _ in range(2))
        self.rows_out, self.columns_out = (nn.Parameter(torch.empty(side, config.d_model)) for _ in range(2))
        self.reset()

    @initial
    def reset(self) -> None:
        # separable random codes: with a zero or a constant start, "where" is learned late or never
        for code in (self.rows, self.columns, self.rows_out, self.columns_out):
            code.normal_(std=0.4)

    def forward(self, pixels: Tensor, merges: int = 0, route: Route | None = None) -> Tensor:
        """pixels [N, 2, 3, 16 h, 16 w] in -1..1 -> embeddings [N, h w / 4^merges, M]."""
        x = self.features(pixels, route)
        height, width = x.shape[1:3]
        x = x.flatten(1, 2)
        for block in self.blocks:
            x = block(x, route)
        x = x.unflatten(1, (height, width))
        for _ in range(merges):
            height, width = height // 2, width // 2
            x = self.merge(rearrange(x, "n (h a) (w b) d -> n h w (a b d)", a=2, b=2), route)
        x = self.projector(self.norm(x), route) + _grid_code(self.rows_out, self.columns_out, height, width).to(x.dtype)
        return x.flatten(1, 2)

    def features(self, pixels: Tensor, route: Route | None = None) -> Tensor:
        """pixels [N, 2, 3, 16 h, 16 w] -> convolved cells [N, h, w, D] with their position code."""
        x = F.pixel_unshuffle(pixels.flatten(1, 2), 4).movedim(1, -1)
        x = self.norm1(F.gelu(self.conv1(x, route)))
        x = self.norm2(F.gelu(self.conv2(x, route)))
        x = self.conv3(x, route)
        return x + _grid_code(self.rows, self.columns, *x.shape[1:3]).to(x.dtype)

    @torch.no_grad()
    def encode(
        self, frames: Sequence[Frame], route: Route | None = None, *, video: bool, total: int | None = None
    ) -> Tensor:
        """Frames of one size -> [len(frames) or pairs, tokens, M]; an image each, or consecutive pairs of a video.

        The last frame of an odd video is repeated. Raises `UsageError` for no frames.
        """
        if not frames:
            raise UsageError("No frames to encode.")
        tokens = self.config.video_tokens if video else self.config.tokens
        merges = round(math.log(self.config.tokens / tokens, 4))
        pixels = torch.cat([self.prepare(frame.rgb, even=2**merges) for frame in frames])
        if video:
            if len(frames) % 2:
                pixels = torch.cat([pixels, pixels[-1:]])
            pairs = pixels.unflatten(0, (-1, 2))
        else:
            pairs = pixels[:, None].expand(-1, 2, -1, -1, -1)
        return self(pairs.to(self.norm.gain.dtype), merges, route)

    def layout(self, frames: Sequence[Frame], *, video: bool, total: int | None = None) -> list[Layout]:
        """Tokens in a row, as text."""
        return [Layout()] * (math.ceil(len(frames) / 2) if video else len(frames))

    def tokens(self, video: bool) -> int:
        """Tokens of an image or of one pair of frames, at most."""
        return self.config.video_tokens if video else self.config.tokens

    def prepare(self, rgb: object, even: int = 1) -> Tensor:
        """rgb uint8 [H, W, 3] -> pixels fp32 [1, 3, 16 h, 16 w] in -1..1 on the nearest grid."""
        picture = torch.as_tensor(rgb).to(self.norm.gain.device).movedim(-1, 0)[None].float()
        height, width = grid_for(picture.shape[2], picture.shape[3], self.config.tokens, even)
        size = (CELL * height, CELL * width)
        if picture.shape[2:] != size:
            picture = F.interpolate(picture, size, mode="bilinear", antialias=True, align_corners=False)
        return picture / 127.5 - 1


def from_config(config: dict[str, Any]) -> PebbleVision:
    """The tower of a config.json."""
    vision = dict(config["vision_config"])
    vision["channels"] = tuple(vision["channels"])
    return PebbleVision(PebbleVisionConfig(d_model=config["text_config"]["hidden_size"], **vision))


def plan(name: str) -> list[Piece] | None:
    """Where a tensor on disk goes."""
    return [Piece(name.removeprefix("vision."))] if name.startswith("vision.") else None


def grid_for(height: int, width: int, tokens: int, multiple: int = 1) -> tuple[int, int]:
    """The grid of at most `tokens` cells, sides multiples of `multiple`, nearest to the aspect ratio; then the
    largest."""
    best, best_cost = (multiple, multiple), math.inf
    for h in range(multiple, tokens + 1, multiple):
        w = max(multiple, round(h * width / height / multiple) * multiple)
        w = min(w, tokens // h // multiple * multiple)
        if w:
            # stretching and unused cells cost alike
            cost = abs(math.log(w / h * height / width)) + math.log(tokens / (h * w))
            if cost < best_cost - 1e-9:
                best, best_cost = (h, w), cost
    return best


def _grid_code(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Row and column tables, resampled to the grid: [height, width, D]."""
    tables = (
        table if len(table) == n else F.interpolate(table.T[None], n, mode="linear", align_corners=True)[0].T
        for table, n in ((rows, height), (columns, width))
    )
    row, column = tables
    return row[:, None] + column[None]
