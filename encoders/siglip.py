"""SigLIP's vision tower (Zhai et al. 2023): a ViT over patches of one picture, without a class token.

Families differ in how a picture's grid meets the learned table of positions: `stretched` is NaFlex (SigLIP 2, Tschannen
et al. 2025), others pick rows of `table`. Letters: N pictures, L = h x w patches in reading order, P patch, D width.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fluvial.adapters.errors import UnsupportedError
from fluvial.adapters.linear import Linear
from fluvial.adapters.lora import Route
from fluvial.adapters.norm import LayerNorm
from fluvial.adapters.weights import Piece

GELU = {"gelu_pytorch_tanh": "tanh", "gelu": "none"}


@dataclass(frozen=True)
class SiglipConfig:
    """The shape of the tower; the table has `side` x `side` positions, `gelu` is "tanh" or "none" (exact)."""

    width: int
    depth: int
    heads: int
    d_ff: int
    patch: int
    side: int
    gelu: str = "tanh"
    eps: float = 1e-6

    @classmethod
    def read(cls, vision: dict[str, Any], positions: int) -> SiglipConfig:
        """From a published `vision_config` with this many positions. Errors: UnsupportedError, ValueError."""
        act, patch = vision.get("hidden_act", "gelu_pytorch_tanh"), vision.get("patch_size", 16)
        unknown = {
            "hidden_act": act not in GELU,
            "num_channels": vision.get("num_channels", 3) != 3,
            "patch_size": not isinstance(patch, int),
        }
        for option in (name for name, wrong in unknown.items() if wrong):
            raise UnsupportedError(f"A vision tower with {option} = {vision[option]!r:.80} is not supported yet.")
        width, heads, side = vision["hidden_size"], vision["num_attention_heads"], math.isqrt(positions)
        if width % heads or side * side != positions:
            raise ValueError(f"{heads} heads of a width of {width}, a square of {positions} positions")
        depth, d_ff = vision["num_hidden_layers"], vision["intermediate_size"]
        return cls(width, depth, heads, d_ff, patch, side, GELU[act], vision.get("layer_norm_eps", 1e-6))


class SiglipBlock(nn.Module):
    """Pre-norm attention within a picture and a GELU feed-forward; x [N, L, D]."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.gelu = config.heads, config.gelu
        self.norm1, self.norm2 = LayerNorm(width, config.eps), LayerNorm(width, config.eps)
        self.q_proj, self.k_proj = Linear(width, width, bias=True), Linear(width, width, bias=True)
        self.v_proj, self.o_proj = Linear(width, width, bias=True), Linear(width, width, bias=True)
        self.up, self.down = Linear(width, config.d_ff, bias=True), Linear(config.d_ff, width, bias=True)

    def forward(self, x: Tensor, route: Route | None = None) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            rearrange(door(y, route), "n l (h d) -> n h l d", h=self.heads)
            for door in (self.q_proj, self.k_proj, self.v_proj)
        )
        x = x + self.o_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "n h l d -> n l (h d)"), route)
        return x + self.down(F.gelu(self.up(self.norm2(x), route), approximate=self.gelu), route)


class Siglip(nn.Module):
    """Patches to features. `table` [side * side, D] holds the learned positions."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = Linear(3 * config.patch**2, config.width, bias=True)
        self.table = nn.Parameter(torch.zeros(config.side**2, config.width))
        self.blocks = nn.ModuleList(SiglipBlock(config) for _ in range(config.depth))
        self.norm = LayerNorm(config.width, config.eps)

    def forward(self, x: Tensor, positions: Tensor, route: Route | None = None) -> Tensor:
        """`patches` [N, L, P P 3] of pictures of one size, their positions [L, D] or [N, L, D] -> [N, L, D]."""
        x = self.patch_embed(x, route) + positions
        for block in self.blocks:
            x = block(x, route)
        out: Tensor = self.norm(x)
        return out

    def stretched(self, grid: tuple[int, int]) -> Tensor:
        """The table resized to a grid of h x w patches, with antialiasing where it shrinks: [L, D]."""
        square = rearrange(self.table.float(), "(h w) d -> 1 d h w", h=self.config.side)
        resized = F.interpolate(square, grid, mode="bilinear", antialias=True, align_corners=False)
        return rearrange(resized, "1 d h w -> (h w) d").to(self.table.dtype)


def patches(pictures: Tensor, patch: int) -> Tensor:
    """pictures [N, 3, h P, w P] -> [N, h w, P P 3]."""
    return rearrange(pictures, "n c (h p) (w q) -> n (h w) (p q c)", p=patch, q=patch)


_WHOLE = {
    "embeddings.patch_embedding.bias": "patch_embed.bias",
    "embeddings.position_embedding.weight": "table",
    "post_layernorm.weight": "norm.gain",
    "post_layernorm.bias": "norm.shift",
}
_BLOCK = [
    (r"layer_norm([12])\.weight", r"norm\1.gain"),
    (r"layer_norm([12])\.bias", r"norm\1.shift"),
    (r"self_attn\.([qkv]_proj\.(?:weight|bias))", r"\1"),
    (r"self_attn\.out_proj\.(weight|bias)", r"o_proj.\1"),
    (r"mlp\.fc1\.(weight|bias)", r"up.\1"),
    (r"mlp\.fc2\.(weight|bias)", r"down.\1"),
]


def placed(name: str, under: str) -> list[Piece] | None:
    """Where a tensor of a published tower goes, in the `Siglip` that is our submodule `under`; its name starts at
    `embeddings.`, `encoder.` or `post_layernorm.`. The patch matrix may be a Linear's or a convolution's."""
    if name == "embeddings.patch_embedding.weight":
        return [Piece(f"{under}.patch_embed.weight", _patch_matrix)]
    if name in _WHOLE:
        return [Piece(f"{under}.{_WHOLE[name]}")]
    if (layer := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)) is None:
        return None
    for pattern, ours in _BLOCK:
        if (match := re.fullmatch(pattern, layer[2])) is not None:
            return [Piece(f"{under}.blocks.{layer[1]}.{match.expand(ours)}")]
    return None


def _patch_matrix(kernel: Tensor) -> Tensor:
    """[D, P P 3] as it is, [D, 3, P, P] in the order of `patches`."""
    return kernel if kernel.ndim == 2 else rearrange(kernel, "d c p q -> d (p q c)")
