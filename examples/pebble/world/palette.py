"""Colours that stay apart: a sample of each named colour, and background palettes far from every object's colour.

Distance is Euclidean in CIE Lab (0 equal, 100 black to white), which follows what an eye can tell apart.
"""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

MIN_CONTRAST = 45.0
# hue in degrees, saturation, value
RANGES = {
    "red": ((-7, 5), (0.78, 1.0), (0.7, 1.0)),
    "green": ((100, 140), (0.65, 1.0), (0.5, 0.85)),
    "blue": ((208, 226), (0.72, 1.0), (0.7, 1.0)),
    "yellow": ((51, 60), (0.75, 1.0), (0.9, 1.0)),
    "purple": ((284, 300), (0.65, 0.95), (0.5, 0.8)),
    "orange": ((26, 34), (0.85, 1.0), (0.92, 1.0)),
    "black": ((0, 360), (0.0, 0.4), (0.0, 0.13)),
    "white": ((0, 360), (0.0, 0.06), (0.94, 1.0)),
}


def sample_colour(rng: np.random.Generator, name: str, level: float) -> np.ndarray:
    """float32 [3] RGB in 0..255, from the middle of the named range at level 0 and all of it at level 1."""
    spread = 0.3 + 0.7 * level
    hue, saturation, value = ((a + b) / 2 + (rng.random() - 0.5) * (b - a) * spread for a, b in RANGES[name])
    return np.array(colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value), np.float32) * 255


def lab(rgb: np.ndarray) -> np.ndarray:
    """float32 [N, 3] RGB in 0..255 to [N, 3] Lab."""
    return cv2.cvtColor(np.ascontiguousarray(rgb[None], np.float32) / 255, cv2.COLOR_RGB2Lab)[0]


def contrast(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each row of a [N, 3], the distance to its nearest row of b [M, 3]."""
    return np.sqrt(((lab(a)[:, None] - lab(b)[None]) ** 2).sum(-1)).min(1)


def background_palette(rng: np.random.Generator, level: float, objects: np.ndarray) -> np.ndarray:
    """float32 [256, 3]: a ramp through 1 to 5 colours, every step of it far from all the objects [M, 3]."""
    hsv = rng.random((48, 3)).astype(np.float32) * (360, 1, 0.95) + (0, 0, 0.05)
    hsv[:, 1] **= 1.5  # muted more often than garish
    candidates = cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0] * 255
    if not len(objects):
        objects = np.array([[300.0, 300.0, 300.0]], np.float32)
    apart = contrast(candidates, objects)
    good = candidates[apart >= MIN_CONTRAST]
    if len(good) < 2:
        good = candidates[np.argsort(-apart)[:2]]
    stops = good[: rng.integers(2, 6)]
    strength = level * rng.uniform(0.15, 1.0)
    ends = np.linspace(0, 255, len(stops))
    for _ in range(6):
        mixed = stops[0] + (stops - stops[0]) * strength
        ramp = np.stack([np.interp(np.arange(256), ends, mixed[:, c]) for c in range(3)], 1).astype(np.float32)
        if contrast(ramp[::16], objects).min() >= 0.85 * MIN_CONTRAST:
            return ramp
        strength *= 0.6
    return np.repeat(stops[:1], 256, 0)
