"""Turns a scene into pixels: background, antialiased shapes, printed lines, then light, noise, blur and JPEG.

A `Look` holds how one object is painted, a `Capture` how the camera sees the whole picture; both are drawn from the
generator before any pixel, so the frames of a video share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from . import backgrounds, palette
from .scene import Object


def _turns(n: int, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
    a = np.arange(n) * 2 * np.pi / n - np.pi / 2
    return np.stack([np.cos(a), np.sin(a)], 1) * np.resize(radii, n)[:, None]


_B, _A = 0.33, 0.944  # half width and length of a cross's arm
_CROSS = [(-_B, -_A), (_B, -_A), (_B, -_B), (_A, -_B), (_A, _B), (_B, _B),
          (_B, _A), (-_B, _A), (-_B, _B), (-_A, _B), (-_A, -_B), (-_B, -_B)]  # fmt: skip
OUTLINES = {
    "circle": _turns(40),
    "square": _turns(4) @ np.array([[1, 1], [-1, 1]]) / 2**0.5,
    "triangle": _turns(3),
    "star": _turns(10, (1.0, 0.42)),
    "cross": np.array(_CROSS),
}


@dataclass
class Look:
    rgb: np.ndarray  # float32 [3] in 0..255
    angle: float = 0.0


@dataclass
class Capture:
    light: np.ndarray | None  # float32 [S, S, 1], a factor
    noise: float  # standard deviation in grey levels
    blur: float  # sigma in pixels, 0 = none
    quality: int  # JPEG, 0 = none


def sample_look(rng: np.random.Generator, colour: str, level: float) -> Look:
    return Look(palette.sample_colour(rng, colour, level), rng.uniform(-np.pi, np.pi) * min(1.0, level * 1.25))


def sample_capture(rng: np.random.Generator, level: float, size: int, objects: Sequence[Object] = ()) -> Capture:
    """The camera; JPEG is kept above what would erase the smallest object or glyph, and goes down to 15 otherwise."""
    finest = min((o.r for o in objects), default=1.0)
    floor = int(15 + 35 * np.clip((0.11 - finest) / 0.05, 0, 1))
    light = None
    if rng.random() < 0.7 * level:
        coarse = rng.uniform(1 - 0.24 * level, 1 + 0.1 * level, (2, 2)).astype(np.float32)
        light = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)[..., None]
    noise = rng.uniform(0, 14) * level if rng.random() < 0.6 else 0.0
    blur = rng.uniform(0.3, 0.7) * size / 128 if rng.random() < 0.25 * level else 0.0
    quality = int(rng.integers(floor, 96)) if rng.random() < 0.6 * level else 0
    return Capture(light, noise, blur, quality)


def background(rng: np.random.Generator, level: float, size: int, looks: list[Look], quiet: bool = False) -> np.ndarray:
    """float32 [S, S, 3], apart in colour from every look; `quiet` halves the texture, for print to stay legible."""
    colours = np.array([look.rgb for look in looks], np.float32).reshape(-1, 3)
    kind = backgrounds.sample_kind(rng, level)
    ramp = palette.background_palette(rng, level * backgrounds.STRENGTH[kind] * (0.5 if quiet else 1.0), colours)
    return ramp[backgrounds.background_field(rng, size, kind)]


def draw_shape(canvas: np.ndarray, o: Object, look: Look, x: float | None = None, y: float | None = None) -> None:
    """Paint one object into a float32 [S, S, 3] canvas; x, y override where it stands."""
    size = canvas.shape[0]
    cx, cy, r = (o.x if x is None else x) * size, (o.y if y is None else y) * size, o.r * size
    x0, y0 = max(int(cx - r) - 1, 0), max(int(cy - r) - 1, 0)
    x1, y1 = min(int(cx + r) + 2, size), min(int(cy + r) + 2, size)
    over = 4 if r < 40 else 2
    c, s = np.cos(look.angle), np.sin(look.angle)
    points = OUTLINES[o.shape] @ np.array([[c, s], [-s, c]]) * r + (cx - x0, cy - y0)
    mask = np.zeros(((y1 - y0) * over, (x1 - x0) * over), np.uint8)
    cv2.fillPoly(mask, [np.round((points * over - 0.5) * 16).astype(np.int32)], 255, shift=4)
    alpha = cv2.resize(mask, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA).astype(np.float32)[..., None] / 255
    region = canvas[y0:y1, x0:x1]
    region += (look.rgb - region) * alpha


@lru_cache(maxsize=1)
def _noise_pool() -> np.ndarray:
    """Gaussian noise to cut pieces from: the same in every process."""
    return np.random.default_rng(20240).standard_normal((512, 512, 3), np.float32)


def develop(rng: np.random.Generator, canvas: np.ndarray, capture: Capture) -> np.ndarray:
    """float32 [S, S, 3] canvas to the uint8 picture the camera delivers; the canvas may be overwritten."""
    size = canvas.shape[0]
    if capture.light is not None:
        canvas = canvas * capture.light
    if capture.blur:
        canvas = cv2.GaussianBlur(canvas, (0, 0), capture.blur)
    if capture.noise:
        pool = _noise_pool()
        if size <= 384:
            top, left = rng.integers(0, 512 - size, 2)
            grain = pool[top : top + size, left : left + size]
        else:
            grain = rng.standard_normal(canvas.shape, np.float32)
        canvas = canvas + grain * np.float32(capture.noise)
    picture = np.clip(canvas, 0, 255).astype(np.uint8)
    if capture.quality:
        _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, capture.quality])
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
        assert decoded is not None  # it was encoded a line above
        picture = np.ascontiguousarray(decoded[..., ::-1])
    return picture
