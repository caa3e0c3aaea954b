"""What LFM2-VL sees of a picture: the whole in a size within limits, or, where that would lose too much, square tiles
in rows and columns and then the whole as a thumbnail. Sizes are as in the published preprocessing; bytes are resized.

Letters: N views of one size, H x W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.encoders.frame import Frame

_RESAMPLE = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Tiling:
    """`merge` x `merge` patches of `patch` pixels make a token; `least` and `most` tokens of a whole picture, which is
    cut into tiles of `side` pixels if it has more than `tolerance` times the most. `marks`: control tokens tell the
    views apart."""

    patch: int
    merge: int
    least: int = 64
    most: int = 256
    tiles: tuple[int, int] = (2, 10)
    side: int = 512
    thumbnail: bool = True
    tolerance: float = 2.0
    marks: bool = True
    resample: str = "bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def read(cls, processor: dict[str, Any], patch: int, merge: int) -> Tiling:
        """From a parsed processor_config.json or the older two files, for a tower with such patches. Errors:
        UnsupportedError for an option that is not implemented, ValueError for numbers that make no sense."""
        given = processor | processor.get("image_processor", {})
        given = {option: value for option, value in given.items() if value is not None}
        known = {
            "encoder_patch_size": (patch,),
            "downsample_factor": (merge,),
            "do_rescale": (True,),
            "do_normalize": (True,),
            "rescale_factor": (1 / 255,),
            "resample": tuple(_RESAMPLE),
        }
        for option, values in known.items():
            if given.get(option, values[0]) not in values:
                raise UnsupportedError(f"Pictures with {option} = {given[option]!r:.80} are not supported yet.")
        split = given.get("do_image_splitting", True)
        made = cls(
            patch,
            merge,
            least=given.get("min_image_tokens", cls.least),
            most=given.get("max_image_tokens", cls.most),
            tiles=(given.get("min_tiles", cls.tiles[0]), given.get("max_tiles", cls.tiles[1])) if split else (1, 1),
            side=given.get("tile_size", cls.side),
            thumbnail=given.get("use_thumbnail", cls.thumbnail),
            tolerance=given.get("max_pixels_tolerance", cls.tolerance),
            marks=given.get("use_image_special_tokens", cls.marks),
            resample=_RESAMPLE[given.get("resample", 2)],
            mean=tuple(given.get("image_mean", cls.mean)),
            std=tuple(given.get("image_std", cls.std)),
        )
        if not (0 < made.least <= made.most and 1 <= made.tiles[0] <= made.tiles[1] <= 1024 and made.tolerance > 0):
            raise ValueError(
                f"{made.least} to {made.most} tokens, {made.tiles} tiles, {made.tolerance} times too large"
            )
        if made.side < made.cell or made.side % made.cell or len(made.mean) != 3 or len(made.std) != 3:
            raise ValueError(f"tiles of {made.side} pixels, tokens of {made.cell}, {made.mean}, {made.std}")
        return made

    @property
    def cell(self) -> int:
        """Pixels of a token's side."""
        return self.patch * self.merge

    @property
    def tile_tokens(self) -> int:
        return (self.side // self.cell) ** 2


@dataclass(frozen=True)
class Cut:
    """A picture in `rows` x `columns` tiles (1 x 1: uncut); the whole is seen in `whole` = (height, width) pixels."""

    rows: int
    columns: int
    whole: tuple[int, int]

    @property
    def tiles(self) -> int:
        return self.rows * self.columns if self.rows * self.columns > 1 else 0


def cut(height: int, width: int, tiling: Tiling, *, split: bool = True) -> Cut:
    """How a picture of this size is seen. `split=False`: uncut in any case. Errors: UsageError for a picture that is
    far too long for its width."""
    split = split and tiling.tiles != (1, 1)
    most, whole, grid = tiling.most * tiling.cell**2, _fitted(height, width, tiling), (1, 1)
    rows, columns = (max(tiling.patch, round(side / tiling.cell) * tiling.cell) for side in (height, width))
    if split and rows * columns > most * tiling.tolerance:
        grid = _grid(height, width, tiling)
    # a thin strip cannot shrink on its short side; the published code breaks on it
    room = max(most, tiling.side**2 if split else 0)
    if (grid == (1, 1) or tiling.thumbnail) and whole[0] * whole[1] > room:
        tokens = whole[0] * whole[1] // tiling.cell**2
        why = f"Such a strip takes {tokens} tokens; at most {room // tiling.cell**2} are possible."
        raise UsageError(f"The picture is {width} x {height}.", why, "Cut it into pieces.")
    return Cut(*grid, whole)


def views(frame: Frame, plan: Cut, tiling: Tiling) -> list[Tensor]:
    """The pixels, fp32 and normalised: the tiles [N, 3, side, side] in reading order if there are any, then the whole
    [1, 3, H, W], unless it is left out."""
    picture = torch.as_tensor(frame.rgb).movedim(-1, 0)[None]
    seen = []
    if plan.tiles:
        large = _resized(picture, (plan.rows * tiling.side, plan.columns * tiling.side), tiling.resample)
        seen.append(rearrange(large, "1 c (r h) (k w) -> (r k) c h w", r=plan.rows, k=plan.columns))
    if not plan.tiles or tiling.thumbnail:
        seen.append(_resized(picture, plan.whole, tiling.resample))
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (tiling.mean, tiling.std))
    return [(view.float() - mean) / std for view in seen]


def _resized(picture: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if picture.shape[2:] == size:
        return picture
    return F.interpolate(picture, size, mode=mode, antialias=True, align_corners=False)


def _fitted(height: int, width: int, tiling: Tiling) -> tuple[int, int]:
    """The size nearest to height x width of whole tokens, with their number within limits where the shape allows."""
    cell = tiling.cell
    rows, columns = (max(cell, round(side / cell) * cell) for side in (height, width))
    least, most = tiling.least * cell**2, tiling.most * cell**2
    if rows * columns > most:
        shrink = math.sqrt(height * width / most)
        rows, columns = (max(cell, math.floor(side / shrink / cell) * cell) for side in (height, width))
    elif rows * columns < least:
        grow = math.sqrt(least / (height * width))
        rows, columns = (math.ceil(side * grow / cell) * cell for side in (height, width))
    return rows, columns


def _grid(height: int, width: int, tiling: Tiling) -> tuple[int, int]:
    """Rows and columns of tiles: of those allowed, in the order of their number, the shape nearest to the picture's; of
    equally near ones a larger grid only if the picture has more than half its pixels."""
    fewest, most = tiling.tiles
    grids = [(n // w, w) for n in range(fewest, most + 1) for w in range(1, n + 1) if n % w == 0]
    best, nearest = (1, 1), math.inf
    for rows, columns in grids:
        off = abs(width / height - columns / rows)
        if off < nearest or (off == nearest and height * width > 0.5 * tiling.side**2 * rows * columns):
            best, nearest = (rows, columns), off
    return best
