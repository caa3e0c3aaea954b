"""Any picture to RGB bytes: alpha on white, palettes, CMYK, and more than 8 bits per channel scaled, not clipped."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fluvial.encoders.frame import RGB

_WIDE_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})
_ARRAY_CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def rgb_of_image(image: Image.Image) -> RGB:
    """A loaded Pillow image of any mode -> RGB [H, W, 3]; the image itself is not changed."""
    if image.mode in _WIDE_MODES:
        image = Image.fromarray(to_8_bits(np.asarray(image)))
    elif image.mode == "La":  # Pillow has no direct way from premultiplied grey to RGBA
        image = image.convert("LA")
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        image = Image.new("RGB", with_alpha.size, (255, 255, 255))
        image.paste(with_alpha, mask=with_alpha.getchannel("A"))
    elif image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image)


def rgb_of_array(array: NDArray[Any]) -> RGB:
    """[H, W] or [H, W, 1..4] (grey, grey+alpha, RGB, RGBA) of any number type -> RGB [H, W, 3].

    Raises ValueError for another shape or for values that are not numbers.
    """
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in _ARRAY_CHANNELS or 0 in array.shape or array.dtype.kind not in "biuf":
        raise ValueError(f"An image is [H, W] or [H, W, 1 to 4] numbers, not {array.dtype} {list(array.shape)}.")
    channels = array.shape[2]
    small = to_8_bits(array)
    if channels == 3:
        return np.array(small, order="C")
    return rgb_of_image(Image.fromarray(np.ascontiguousarray(small[..., 0] if channels == 1 else small)))


def to_8_bits(values: NDArray[Any]) -> RGB:
    """Numbers -> uint8 of the same shape.

    16-bit numbers scale by their full range. Wider numbers carry no range, so it is taken from the values: floats
    within 0..1 scale by 255, numbers within 0..255 stay, whole numbers within 0..65535 scale as 16-bit ones, anything
    else is stretched from its lowest to its highest value. NaN is 0.
    """
    kind, bits = values.dtype.kind, 8 * values.dtype.itemsize
    if kind == "b":
        return np.where(values, np.uint8(255), np.uint8(0))
    if kind == "u" and bits == 8:
        return np.asarray(values, np.uint8)
    if kind == "u" and bits == 16:
        return _16_to_8(values)
    if kind == "f":
        values = values.astype(np.float32)  # a copy, so that the caller's array stays as it is
        np.nan_to_num(values, copy=False, nan=0.0)
    low, high = float(values.min()), float(values.max())
    if kind != "f" and low >= 0 and 255 < high <= 65535:
        return _16_to_8(values)
    if low >= 0 and high <= 255:
        scale = 255.0 if kind == "f" and high <= 1 else 1.0
        return np.asarray(np.rint(values * scale), np.uint8)
    scale = 255 / (high - low or 1.0)
    return np.asarray(np.rint((values.astype(np.float64) - low) * scale), np.uint8)


def _16_to_8(values: NDArray[Any]) -> RGB:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 is 255 * 257
