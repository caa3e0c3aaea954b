"""What Idefics3's tower sees of a picture: squares of one side cut from an enlarged copy, the whole of it last.

Bit for bit the published preprocessing in Pillow: the longer edge is brought to `longest`, both edges are stretched to
multiples of `side`, and what is larger than one square is cut into a grid of them. Letters: N squares of side S.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fluvial.adapters.errors import UnsupportedError
from fluvial.encoders.frame import RGB

LONGEST = 4096  # pixels: an enlarged picture's longer edge, whatever the processor's file asks for
MOST_TILES = 4096  # a file that asks for more is damaged
_KNOWN = {"resample": (1,), **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), (True,))}


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut: `longest` and `side` in pixels; without `split` the whole picture is one square."""

    longest: int = 4 * 364
    side: int = 364
    split: bool = True
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def read(cls, image: dict[str, Any]) -> Tiling:
        """From an image or video processor's options. Errors: UnsupportedError, ValueError."""
        for option, values in _KNOWN.items():
            if (value := image.get(option)) is not None and value not in values:
                raise UnsupportedError(f"Pictures prepared with {option} = {value!r:.40} are not supported yet.")
        longest, side = (_edge(image, key, getattr(cls, name)) for key, name in (("size", "longest"), _SIDE))
        mean, std = (tuple(image.get(f"image_{name}") or getattr(cls, name)) for name in ("mean", "std"))
        if not len(mean) == len(std) == 3 or (min(longest, LONGEST) / side + 1) ** 2 > MOST_TILES:
            raise ValueError(f"pictures of {longest} pixels in squares of {side}, mean {mean}, std {std}")
        return cls(longest, side, bool(image.get("do_image_splitting", True)), mean, std)

    def enlarged(self, height: int, width: int) -> tuple[int, int]:
        """The size to which a picture is brought first."""
        shape = width / height
        if width >= height:
            height, width = max(1, _even(int(self.longest / shape))), self.longest
        else:
            height, width = self.longest, max(1, _even(int(self.longest * shape)))
        if max(height, width) <= LONGEST:
            return height, width
        shape = width / height
        if width >= height:
            return max(1, int(LONGEST / shape)), LONGEST
        return LONGEST, max(1, int(LONGEST * shape))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of squares that a picture is cut into; (1, 1): it is not cut."""
        if not self.split:
            return 1, 1
        height, width = self.enlarged(height, width)
        shape = width / height
        if width >= height:
            columns = math.ceil(width / self.side)
            return math.ceil(int(columns * self.side / shape) / self.side), columns
        rows = math.ceil(height / self.side)
        return rows, math.ceil(int(rows * self.side * shape) / self.side)

    def squares(self, rgb: RGB) -> Tensor:
        """rgb [H, W, 3] -> fp32 [N, 3, S, S], normalised: the grid in reading order and then the whole, or one."""
        rows, columns = self.grid(*rgb.shape[:2])
        picture = _resized(Image.fromarray(rgb), self.enlarged(*rgb.shape[:2]))
        if self.split:
            picture = _resized(picture, (rows * self.side, columns * self.side))
        whole = np.asarray(_resized(picture, (self.side, self.side)))[None]
        if rows * columns > 1:
            cells = np.asarray(picture).reshape(rows, self.side, columns, self.side, 3).swapaxes(1, 2)
            whole = np.concatenate([cells.reshape(-1, self.side, self.side, 3), whole])
        mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (self.mean, self.std))
        return (torch.from_numpy(whole.copy()).movedim(-1, 1).float() - mean) / std


_SIDE = ("max_image_size", "side")


def _edge(image: dict[str, Any], key: str, usual: int) -> int:
    given = image.get(key) or {"longest_edge": usual}
    edge = given.get("longest_edge") if isinstance(given, dict) else given
    if isinstance(edge, bool) or not isinstance(edge, int):
        raise UnsupportedError(f"Pictures brought to {key} = {given!r:.60} are not supported yet.")
    if edge < 1:
        raise ValueError(f"{key} is {given}")
    return edge


def _even(edge: int) -> int:
    return edge + edge % 2


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), Image.Resampling.LANCZOS)
