"""What Qwen's vision towers see of a picture: a size within limits, bicubic pixels in -1..1, patches in merge order.

Bit for bit the published preprocessing: the resize works on bytes, and the patches of one output token (2 x 2) lie
together. Letters: N steps of T frames, H x W pixels, gh x gw patches, P patch size, m merge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from fluvial.adapters.errors import UnsupportedError, UsageError
from fluvial.encoders.frame import Frame

LONGEST_SHAPE = 200  # longer side over shorter: more is refused


@dataclass(frozen=True)
class Limits:
    """Fewest and most pixels: of an image, and of all frames of a video together; `frame_tokens` of one frame of a live
    stream, and with `capped` of every video."""

    image: tuple[int, int] = (65536, 16777216)
    video: tuple[int, int] = (4096, 25165824)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    frame_tokens: int = 768
    capped: bool = False

    @classmethod
    def read(cls, processor: dict[str, Any]) -> Limits:
        """From a parsed processor_config.json, or an older preprocessor_config.json. Errors: UnsupportedError."""
        image, video = processor.get("image_processor", processor), processor.get("video_processor", {})
        if image.get("resample", 3) != 3:
            raise UnsupportedError(f"Images resampled in the way {image['resample']!r} are not supported yet.")
        cap, capped = video.get("max_video_tokens") or cls.frame_tokens, bool(video.get("cap_pixels_per_frame"))
        if isinstance(cap, bool) or not isinstance(cap, int) or cap < 1:
            raise ValueError(f"max_video_tokens is {cap!r:.40}")
        mean, std = (tuple(image.get(f"image_{name}", getattr(cls, name))) for name in ("mean", "std"))
        return cls(_edges(image, cls.image), _edges(video, cls.video), mean, std, cap, capped)

    def of_video(self, frames: int, factor: int, live: bool = False) -> tuple[int, int]:
        """Fewest and most pixels of so many frames together; a token is `factor` x `factor` pixels."""
        least, most = self.video
        if not (live or self.capped):
            return least, most
        return least, frames * max(min(self.frame_tokens * factor**2, most // frames), int(1.05 * least))


def _edges(processor: dict[str, Any], usual: tuple[int, int]) -> tuple[int, int]:
    size = processor.get("size") or {}
    least = processor.get("min_pixels") or size.get("shortest_edge") or usual[0]
    most = processor.get("max_pixels") or size.get("longest_edge") or usual[1]
    return int(least), int(most)


def fitted(height: int, width: int, factor: int, limits: tuple[int, int], frames: int = 1) -> tuple[int, int]:
    """The size nearest to height x width whose sides `factor` divides, with `frames` times as many pixels within
    `limits`. Errors: UsageError for a picture that is far too long for its width."""
    if max(height, width) / min(height, width) > LONGEST_SHAPE:
        raise UsageError(f"The picture is {width} x {height}.", f"Its sides differ more than {LONGEST_SHAPE} times.")
    least, most = limits
    if frames > 1 and min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    rows, columns = (round(side / factor) * factor for side in (height, width))
    counted = frames if frames == 1 else round(frames / 2) * 2
    if counted * rows * columns > most:
        shrink = math.sqrt(frames * height * width / most)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif counted * rows * columns < least:
        grow = math.sqrt(least / (frames * height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def pixels(frames: Sequence[Frame], size: tuple[int, int], limits: Limits) -> Tensor:
    """Frames of one size -> fp32 [frames, 3, H, W], normalised. Errors: UsageError for frames of several sizes."""
    shapes = {(frame.height, frame.width) for frame in frames}
    if len(shapes) != 1:
        raise UsageError(f"The frames have several sizes: {sorted(shapes)}.", hint="Encode them one by one.")
    bytes_ = torch.stack([torch.as_tensor(frame.rgb).movedim(-1, 0) for frame in frames])
    if bytes_.shape[2:] != size:
        bytes_ = F.interpolate(bytes_, size, mode="bicubic", antialias=True, align_corners=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (limits.mean, limits.std))
    return (bytes_.float() - mean) / std


def patches(pictures: Tensor, patch: int, merge: int) -> Tensor:
    """pictures [N, T, 3, H, W] -> [N, gh gw, 3 T P P], the m x m patches of a token in a row."""
    pattern = "n t c (h a p) (w b q) -> n (h w a b) (c t p q)"
    return rearrange(pictures, pattern, a=merge, b=merge, p=patch, q=patch)
