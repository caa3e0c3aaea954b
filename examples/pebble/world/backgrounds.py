"""Background textures as scalar fields (uint8 [S, S]); a palette turns a field into colours.

Blobs and photo-like fields are blurred, so that no part of a background passes for a shape.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

# how far a kind's colours may lie apart: kinds whose parts have outlines stay faint, or they would pass for shapes
STRENGTH = {
    "plain": 0.0, "gradient": 1.0, "radial": 0.6, "stripes": 1.0, "checker": 0.3, "noise": 1.0, "clouds": 1.0,
    "blobs": 0.4, "photo": 0.7,
}  # fmt: skip
KINDS = tuple(STRENGTH)


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel centre in -0.5..0.5, float32 [S, S] each."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return (x + 0.5) / size - 0.5, (y + 0.5) / size - 0.5


def _smooth(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    coarse = rng.random((cells, cells), np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def _clouds(rng: np.random.Generator, size: int) -> np.ndarray:
    first = int(rng.integers(2, 5))
    return sum(_smooth(rng, size, first * 2**i) / 2**i for i in range(4)) / 1.875


def _blobs(rng: np.random.Generator, size: int, count: int) -> np.ndarray:
    canvas = np.full((size, size), rng.integers(0, 256), np.uint8)
    for cx, cy, a, b, angle, grey in rng.random((count, 6)):
        axes = (int((0.05 + 0.3 * a) * size), int((0.05 + 0.2 * b) * size))
        cv2.ellipse(canvas, (int(cx * size), int(cy * size)), axes, angle * 180, 0, 360, int(grey * 255), -1)
    sigma = size * rng.uniform(0.03, 0.08)
    return cv2.GaussianBlur(canvas, (0, 0), sigma).astype(np.float32) / 255


def sample_kind(rng: np.random.Generator, level: float) -> str:
    """Plain at level 0, nearly always a texture at level 1."""
    return "plain" if rng.random() > 0.9 * level else KINDS[rng.integers(1, len(KINDS))]


def background_field(rng: np.random.Generator, size: int, kind: str) -> np.ndarray:
    """uint8 [S, S] of one of KINDS."""
    if kind == "plain":
        return np.zeros((size, size), np.uint8)
    x, y = grid(size)
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1)
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    if kind == "gradient":
        t = along * 0.75 + 0.5
    elif kind == "radial":
        t = np.sqrt((x - rng.uniform(-0.4, 0.4)) ** 2 + (y - rng.uniform(-0.4, 0.4)) ** 2)
    elif kind == "stripes":
        t = 0.5 + 0.5 * np.tanh(rng.uniform(0.5, 6) * np.sin((along * rng.uniform(3, 16) + offset) * 2 * np.pi))
    elif kind == "checker":
        across = y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))
        cycles = rng.uniform(4, 10) * 2 * np.pi
        t = 0.5 + 0.5 * np.tanh(rng.uniform(1, 3) * np.sin(along * cycles) * np.sin(across * cycles))
    elif kind == "noise":
        t = _smooth(rng, size, int(rng.integers(12, max(13, size // 2))))
    elif kind == "clouds":
        t = _clouds(rng, size)
    elif kind == "blobs":
        t = _blobs(rng, size, int(rng.integers(4, 20)))
    else:  # photo: light falling from one side, soft things, ground, grain
        t = 0.35 * _clouds(rng, size) + 0.35 * _blobs(rng, size, 12) + 0.2 * (along + 0.5)
        t += 0.1 * (y > rng.uniform(-0.3, 0.3)) + 0.1 * rng.random((size, size), np.float32)
    return (np.clip(t, 0, 1) * 255).astype(np.uint8)
