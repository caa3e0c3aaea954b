"""Still images, safely: known kinds only, the pixel cap read from the header before decoding, upright and RGB.

Pillow's `Image.open` is not used: its guard against huge images warns, through the process-wide warning filters, at a
size of its own. The file classes are called directly instead, and one cap decides, as an error. This also leaves no
global state of Pillow changed, and any thread may read images.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from fluvial.adapters.errors import FluvialError, MediaError, OutOfMemoryError
from fluvial.encoders.containers import layout_of
from fluvial.encoders.frame import MAX_PIXELS, Frame
from fluvial.encoders.pixels import rgb_of_array, rgb_of_image
from fluvial.encoders.source import IMAGE_KINDS, VIDEO_KINDS, head_of, local, name_of, sniff, unknown

# A JPEG above the cap can be decoded at 1/2, 1/4 or 1/8 of its size, but all of it has to be read: this much, no more.
MAX_DRAFT_PIXELS = 256_000_000
_ORIENTATION = 0x0112  # the EXIF tag

_FILES: dict[str, Any] = {
    "jpeg": JpegImagePlugin.jpeg_factory,
    "png": PngImagePlugin.PngImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "avif": AvifImagePlugin.AvifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
}


def read_image(source: str | Path | bytes | Image.Image | NDArray[Any], *, max_pixels: int = MAX_PIXELS) -> Frame:
    """Read one still image: the frame's `rgb` is uint8 [H, W, 3], its `t` and `index` are 0.

    Files and bytes may be JPEG, PNG, WebP, AVIF, BMP, GIF, TIFF, and HEIC with the `[heic]` extra; of an animation the
    first frame is read. EXIF orientation is applied, alpha is composited on white, 16-bit and float pixels are scaled
    to 8 bits. A baseline JPEG above `max_pixels` (and up to 256 MP) is decoded at a half, a quarter or an eighth of
    its width and height. An array is [H, W] or [H, W, 1 to 4] numbers.

    Raises:
        MediaError: no such file, not an image, truncated, damaged, or a kind whose extra is not installed.
        OutOfMemoryError: more pixels than `max_pixels`; nothing was decoded.
    """
    if isinstance(source, np.ndarray):
        name = f"(array {list(source.shape)})"
        with _told(name, source, ""):
            if source.ndim >= 2:
                check_size(source.shape[1], source.shape[0], max_pixels, "image", name)
            return Frame(rgb_of_array(source))
    if isinstance(source, Image.Image):
        with _told("(Pillow image)", source, ""):
            check_size(*source.size, max_pixels, "image", "(Pillow image)")
            return Frame(rgb_of_image(upright(source)))
    with open_image(source, max_pixels=max_pixels) as image:
        return Frame(rgb_of_image(image))


@contextlib.contextmanager
def open_image(source: str | Path | bytes, *, max_pixels: int, noun: str = "image") -> Iterator[Image.Image]:
    """The first picture of a file, decoded and upright, in whatever mode the file has. Errors as for `read_image`,
    also for what goes wrong inside the `with` block."""
    place = local(source, noun)
    head = head_of(place)
    kind = sniff(head)
    if kind in VIDEO_KINDS:
        raise MediaError(f"Cannot read the image {name_of(source)}.", "It is a video.", "Pass it as a video instead.")
    if kind not in IMAGE_KINDS:
        raise unknown(source, noun, head)
    stream: BinaryIO = io.BytesIO(place) if isinstance(place, bytes) else place.open("rb")
    with stream, _told(name_of(source), place, kind, noun):
        image = open_header(stream, kind, name_of(source), max_pixels, noun)
        image.load()
        yield upright(image, in_place=True)


def upright(image: Image.Image, *, in_place: bool = False) -> Image.Image:
    """The image turned as its EXIF orientation asks; itself where there is nothing to turn."""
    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return image
        if not in_place:
            return ImageOps.exif_transpose(image)
        ImageOps.exif_transpose(image, in_place=True)  # no second copy of the pixels, but only if nobody else has it
    except MemoryError:
        raise
    except Exception:  # a broken EXIF block is no reason to refuse the pixels: they stay as stored
        return image
    return image


def open_header(stream: BinaryIO, kind: str, name: str, max_pixels: int, noun: str = "image") -> ImageFile.ImageFile:
    """The file class of a kind on an open stream, with only its header read and its size checked."""
    image: ImageFile.ImageFile = (_FILES.get(kind) or _heic_file(name))(stream)
    width, height = image.size
    # A progressive JPEG keeps all its coefficients in memory at any scale, so a draft would save nothing.
    draftable = isinstance(image, JpegImagePlugin.JpegImageFile) and not image.info.get("progressive")
    if draftable and max_pixels < width * height <= MAX_DRAFT_PIXELS:
        scale = next((s for s in (2, 4, 8) if -(-width // s) * -(-height // s) <= max_pixels), 8)
        image.draft(None, (width // scale, height // scale))
    if image.width * image.height > max_pixels:
        check_size(width, height, max_pixels, noun, name)
    return image


def check_size(width: int, height: int, max_pixels: int, noun: str, name: str) -> None:
    """Raises OutOfMemoryError if width x height is above the cap."""
    if width * height > max_pixels:
        raise OutOfMemoryError(
            f"The {noun} {name} is too large to decode.",
            f"It has {width} x {height} = {width * height / 1e6:,.1f} megapixels; the cap is {max_pixels / 1e6:,.1f}.",
            "Scale it down first, or raise max_pixels if you trust the file.",
        )


def _heic_file(name: str) -> Any:
    try:
        import pillow_heif
    except ImportError as error:
        raise MediaError(
            f"Cannot read the image {name}.",
            "It is a HEIC file, and the package that reads those is not installed.",
            "Install it with: pip install 'fluvial[heic]', or convert the file to JPEG.",
        ) from error
    # The class alone, not `register_heif_opener()`: that would change Pillow for the whole process.
    return pillow_heif.HeifImageFile


@contextlib.contextmanager
def _told(name: str, place: object, kind: str, noun: str = "image") -> Iterator[None]:
    """Turns whatever a decoder raises into the project's errors. Decoders of untrusted bytes raise anything."""
    what = f"Cannot read the {noun} {name}."
    try:
        yield
    except FluvialError:
        raise
    except (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise OutOfMemoryError(what, f"It does not fit into memory ({error}).", "Scale it down first.") from error
    except Exception as error:
        why, hint = f"Its data is damaged ({error}).", "Open it in another program, or save it again."
        layout = layout_of(place, kind) if isinstance(place, bytes | Path) else None
        if layout is not None and layout.whole is False:
            by = f" by {layout.missing:,} bytes" if layout.missing else ""
            why, hint = f"The file is truncated: it is cut short{by}.", "Copy or download it again."
        elif "truncated" in str(error).lower():
            why, hint = f"The file is truncated ({error}).", "Copy or download it again."
        elif layout is None:
            why, hint = f"{error}", ""
        raise MediaError(what, why, hint) from error
