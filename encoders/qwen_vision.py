"""The vision tower of Qwen3-VL and Qwen3.5: a ViT over 16 x 16 patches of two frames, 2 x 2 of them merged to a token.

Patches are embedded by one matrix (a convolution whose stride is its size), a learned 48 x 48 table of positions is
stretched over the grid, and queries and keys rotate by row and column. Attention stays within a step: an image (shown
twice) or a pair of frames, so that a video is a row of images, each with its time as text before it. Qwen3-VL merges
what some inner blocks say as well (DeepStack, Meng et al. 2024): parts of the embedding for the first decoder layers.

Letters: N steps, L = h x w patches, D tower width, M decoder width, S deepstack blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fluvial.adapters.errors import UsageError
from fluvial.adapters.linear import Linear
from fluvial.adapters.lora import Route
from fluvial.adapters.norm import LayerNorm
from fluvial.encoders.frame import Frame
from fluvial.encoders.layout import Layout, Viewing
from fluvial.encoders.qwen_frames import Watching
from fluvial.encoders.qwen_layout import step_layout
from fluvial.encoders.qwen_pixels import Limits, fitted, patches, pixels
from fluvial.encoders.towers import Tower
from fluvial.encoders.video_reader import VideoReader

STRIP = 512  # patches that pass through a feed-forward together
HEADS = 4  # that attend together


@dataclass(frozen=True)
class QwenVisionConfig:
    """The shape of the tower; `side` of the position table, `gelu` of the blocks ("tanh" or "none": exact), `deepstack`
    the blocks whose outputs are embedded too, in rising order."""

    d_model: int
    width: int
    depth: int
    heads: int
    d_ff: int
    patch: int = 16
    merge: int = 2
    frames: int = 2
    side: int = 48
    gelu: str = "tanh"
    theta: float = 10000.0
    deepstack: tuple[int, ...] = ()
    limits: Limits = field(default_factory=Limits)
    watching: Watching = field(default_factory=Watching)


class QwenBlock(nn.Module):
    """Pre-norm attention within a step and a GELU feed-forward; x [N, L, D], angles [L, head / 2]."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.gelu = config.heads, config.gelu
        self.norm1, self.norm2 = LayerNorm(width, 1e-6), LayerNorm(width, 1e-6)
        self.qkv, self.proj = Linear(width, 3 * width, bias=True), Linear(width, width, bias=True)
        self.up, self.down = Linear(width, config.d_ff, bias=True), Linear(config.d_ff, width, bias=True)

    def forward(self, x: Tensor, angles: Tensor, route: Route | None = None) -> Tensor:
        x = x + self._attended(x, angles, route)
        # a strip of patches at a time: four times as wide inside, a megapixel would take 200 MB
        strips = x.split(max(1, STRIP // len(x)), 1)
        return x + torch.cat([self._fed(strip, route) for strip in strips], 1)

    def _attended(self, x: Tensor, angles: Tensor, route: Route | None) -> Tensor:
        qkv = rearrange(self.qkv(self.norm1(x), route), "n l (three h d) -> three n h l d", three=3, h=self.heads)
        # a few heads at a time: turned copies of all would take another 130 MB
        turned = ((_rotated(q, angles), _rotated(k, angles), v) for q, k, v in qkv.split(HEADS, 2))
        y = [rearrange(F.scaled_dot_product_attention(*some), "n h l d -> n l (h d)") for some in turned]
        return self.proj(torch.cat(y, -1), route)

    def _fed(self, x: Tensor, route: Route | None) -> Tensor:
        return self.down(F.gelu(self.up(self.norm2(x), route), approximate=self.gelu), route)


class Merger(nn.Module):
    """The merge x merge patches of a token, in a row: [N, L, D] -> [N, L / 4, M]. The norm sees a patch, or with
    `whole` all of a token's."""

    def __init__(self, config: QwenVisionConfig, whole: bool = False) -> None:
        super().__init__()
        self.patches, self.whole = config.merge**2, whole
        merged = self.patches * config.width
        self.norm = LayerNorm(merged if whole else config.width, 1e-6)
        self.up, self.down = Linear(merged, merged, bias=True), Linear(merged, config.d_model, bias=True)

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        x = x if self.whole else self.norm(x)
        x = rearrange(x, "n (t merge) d -> n t (merge d)", merge=self.patches)
        x = self.norm(x) if self.whole else x
        return self.down(F.gelu(self.up(x, route)), route)


class QwenVision(Tower):
    """Pixels to decoder embeddings."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.frames_per_step = config.frames
        self.patch_embed = Linear(3 * config.frames * config.patch**2, config.width, bias=True)
        self.positions = nn.Parameter(torch.zeros(config.side**2, config.width))
        self.blocks = nn.ModuleList(QwenBlock(config) for _ in range(config.depth))
        self.merger = Merger(config)
        self.deepstack = nn.ModuleList(Merger(config, whole=True) for _ in config.deepstack)

    def forward(self, x: Tensor, grid: tuple[int, int], route: Route | None = None) -> Tensor:
        """Patches [N, L, pixels] of a grid of h x w, in merge order -> embeddings [N, L / 4, M (1 + S)]."""
        x = self.patch_embed(x, route) + self._table(grid).to(x.dtype)
        angles = self._angles(grid, x.device)
        parts, mergers = [], dict(zip(self.config.deepstack, self.deepstack, strict=True))
        for i, block in enumerate(self.blocks):
            x = block(x, angles, route)
            if i in mergers:
                parts.append(mergers[i](x, route))
        return torch.cat([self.merger(x, route), *parts], -1)

    @torch.no_grad()
    def encode(
        self, frames: Sequence[Frame], route: Route | None = None, *, video: bool, total: int | None = None
    ) -> Tensor:
        """Frames of one size -> [images, or pairs; tokens; M (1 + S)]. `total`: the frames of the whole video, which
        share its pixels; without it, as for a live stream, each has a budget of its own. An odd last frame is repeated.
        Raises `UsageError` for no frames."""
        size = self._size(frames, video, total)
        pictures = pixels(frames, size, self.config.limits)[:, None]
        if video:
            missing = -len(frames) % self.frames_per_step
            pictures = torch.cat([pictures, pictures[-1:].expand(missing, -1, -1, -1, -1)])
            pictures = pictures.unflatten(0, (-1, self.frames_per_step)).squeeze(2)
        else:
            pictures = pictures.expand(-1, self.frames_per_step, -1, -1, -1)
        x = patches(pictures, self.config.patch, self.config.merge).to(self.positions)
        return self(x, (size[0] // self.config.patch, size[1] // self.config.patch), route)

    def layout(self, frames: Sequence[Frame], *, video: bool, total: int | None = None) -> list[Layout]:
        """How each step of `encode` enters the token stream: text around it, positions of its tokens."""
        height, width = (side // (self.config.patch * self.config.merge) for side in self._size(frames, video, total))
        pairs = [frames[i : i + self.frames_per_step] for i in range(0, len(frames), self.frames_per_step)]
        times = [(pair[0].t + pair[-1].t) / 2 for pair in pairs] if video else [None] * len(frames)
        return [step_layout(height, width, t) for t in times]

    def viewing(self, source: VideoReader, *, fps: float | None, count: int | None, most: int | None) -> Viewing:
        """The frames of a file to look at."""
        return self.config.watching.viewing(source, fps=fps, count=count, most=most)

    def tokens(self, video: bool) -> int:
        """Tokens of an image or of one pair of frames, at most."""
        cell = (self.config.patch * self.config.merge) ** 2
        most = self.config.limits.video[1] // self.frames_per_step if video else self.config.limits.image[1]
        return most // cell

    def _size(self, frames: Sequence[Frame], video: bool, total: int | None) -> tuple[int, int]:
        if not frames:
            raise UsageError("No frames to encode.")
        shape, factor = (frames[0].height, frames[0].width), self.config.patch * self.config.merge
        if not video:
            return fitted(*shape, factor, self.config.limits.image)
        count = max(self.frames_per_step, total or len(frames))
        return fitted(*shape, factor, self.config.limits.of_video(count, factor, live=total is None), count)

    def _table(self, grid: tuple[int, int]) -> Tensor:
        """The learned positions stretched over the grid, [L, D] in merge order."""
        side = self.config.side
        table = self.positions.float().T.reshape(1, -1, side, side)
        return self._in_order(F.interpolate(table, grid, mode="bilinear", align_corners=True)[0].movedim(0, -1))

    def _angles(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Rows turn the first half of the frequencies, columns the second: [L, head / 2] in merge order."""
        axis = self.config.width // self.config.heads // 2  # channels of a head that follow one axis
        frequency = self.config.theta ** (-torch.arange(0, axis, 2, dtype=torch.float64, device=device) / axis)
        rows, columns = (torch.arange(n, device=device)[:, None] * frequency for n in grid)
        shape = (*grid, len(frequency))
        return self._in_order(torch.cat([rows[:, None].expand(shape), columns[None].expand(shape)], -1))

    def _in_order(self, cells: Tensor) -> Tensor:
        """[h, w, C] -> [h w, C], the merge x merge cells of a token in a row."""
        m = self.config.merge
        return rearrange(cells, "(h a) (w b) c -> (h w a b) c", a=m, b=m)


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """x [..., L, head] with channel i and i + head / 2 turned together, in fp32."""
    first, second = (x if x.dtype == torch.float64 else x.float()).chunk(2, -1)
    cos, sin = angles.cos().to(first.dtype), angles.sin().to(first.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
