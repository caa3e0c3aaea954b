"""Still images: every kind comes out upright, RGB and at the right brightness; what is unsafe or broken is refused."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from fluvial.adapters.errors import FluvialError, MediaError, OutOfMemoryError
from fluvial.encoders.frame import Frame, fit
from fluvial.encoders.image import read_image
from tests.media.media_files import animation, corners, encoded, four_colours, grey, write_video

KINDS = ["jpeg", "png", "webp", "avif", "bmp", "gif", "tiff"]


def png_header(width: int, height: int) -> bytes:
    """A PNG whose pixels are missing: to decode it is an error, so a refusal for its size has not tried."""
    return b"\x89PNG\r\n\x1a\n" + png_size(width, height) + struct.pack(">I4s", 1000, b"IDAT")


def png_size(width: int, height: int) -> bytes:
    return png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_from_path_and_bytes(tmp_path, kind):
    data = encoded(four_colours(), kind)
    path = tmp_path / "no_telling_name"
    path.write_bytes(data)
    for source in (path, str(path), data):
        frame = read_image(source)
        assert isinstance(frame, Frame)
        assert frame.rgb.shape == (48, 64, 3) and frame.rgb.dtype == np.uint8
        assert (frame.t, frame.index) == (0.0, 0)
        assert corners(frame.rgb) == "RGBW"
    assert frame.rgb.flags.writeable and frame.rgb.flags.c_contiguous  # torch.from_numpy asks for it


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "avif", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    # What a camera held that way stores: the operation that undoes the orientation, applied beforehand.
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = Image.fromarray(four_colours())
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, kind, exif=exif)
    frame = read_image(data)
    assert corners(frame.rgb) == "RGBW"
    assert frame.rgb.shape == (48, 64, 3)


def test_orientation_of_a_pillow_image_leaves_it_alone():
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(encoded(four_colours(), "jpeg", exif=exif))) as image:
        assert corners(read_image(image).rgb) == "BRWG"
        assert image.size == (64, 48) and image.getexif()[0x0112] == 6


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_is_no_reason_to_refuse():
    data = encoded(four_colours(), "jpeg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\0\0\0\0")
    assert corners(read_image(data).rgb) == "RGBW"


@pytest.mark.parametrize("kind", ["png", "webp", "avif", "tiff"])
def test_alpha_is_composited_on_white(kind):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., 0] = 200  # dark red underneath, everywhere
    rgba[:, 16:, 3] = 255
    rgba[16:, :16, 3] = 128
    rgb = read_image(encoded(Image.fromarray(rgba), kind, **({"lossless": True} if kind == "webp" else {}))).rgb
    assert (rgb[4:12, 4:12] >= 250).all()  # transparent: white, not the red that is stored there
    assert np.abs(rgb[8, 24].astype(int) - (200, 0, 0)).max() <= 8
    assert np.abs(rgb[24, 8].astype(int) - (227, 127, 127)).max() <= 8


def test_palette_transparency_and_grey_with_alpha():
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.paste(0, (0, 0, 4, 8))
    for kind in ("png", "gif"):
        rgb = read_image(encoded(palette, kind, transparency=0)).rgb
        assert rgb[4, 1].tolist() == [255, 255, 255] and rgb[4, 6].tolist() == [200, 100, 50]
        assert read_image(encoded(palette, kind)).rgb[4, 1].tolist() == [10, 20, 30]
    grey_alpha = Image.merge("LA", [Image.new("L", (4, 4), 50), Image.new("L", (4, 4), 0)])
    assert (read_image(encoded(grey_alpha, "png")).rgb == 255).all()
    keyed = Image.new("RGB", (4, 4), (1, 2, 3))
    assert (read_image(encoded(keyed, "png", transparency=(1, 2, 3))).rgb == 255).all()


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "1", "L", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "I;16B"])
def test_every_pillow_mode_becomes_rgb(mode):
    rgb = read_image(Image.new(mode, (5, 3))).rgb
    assert rgb.shape == (3, 5, 3) and rgb.dtype == np.uint8


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_16_bit_is_rescaled_not_clipped(kind):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    rgb = read_image(encoded(Image.fromarray(ramp), kind)).rgb
    assert (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all()
    assert np.abs(rgb[..., 0].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-1000.0, 0.0, 1000.0]], np.float32), [0, 128, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 1 << 30, (1 << 31) - 1]], np.int32), [0, 128, 255]),
    ],
)
def test_i_and_f_modes_are_rescaled(values, expected):
    for source in (encoded(Image.fromarray(values), "tiff"), Image.fromarray(values), values):
        rgb = read_image(source).rgb
        assert np.abs(rgb[0, :, 0].astype(int) - expected).max() <= 1
        assert (rgb[..., 0] == rgb[..., 2]).all()


def test_nan_and_infinite_pixels():
    rgb = read_image(np.array([[np.nan, 0.0, 1.0]])).rgb
    assert rgb[0, :, 0].tolist() == [0, 0, 255]
    assert read_image(np.array([[np.inf, 0.0]])).rgb[0, :, 0].tolist() == [255, 0]


def test_cmyk():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    for kind in ("jpeg", "tiff"):
        red, green, blue = read_image(encoded(cmyk, kind)).rgb[8, 8]
        assert red > 240 and green < 20 and blue < 20


@pytest.mark.parametrize(
    ("array", "pixel"),
    [
        (np.full((2, 3), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 3, 1), 7, np.uint8), [7, 7, 7]),
        (np.full((2, 3, 3), (1, 2, 3), np.uint8), [1, 2, 3]),
        (np.full((2, 3, 4), (1, 2, 3, 0), np.uint8), [255, 255, 255]),
        (np.full((2, 3, 4), (1, 2, 3, 255), np.uint8), [1, 2, 3]),
        (np.full((2, 3, 3), 1.0), [255, 255, 255]),
        (np.full((2, 3), 65535, np.uint16), [255, 255, 255]),
        (np.ones((2, 3), bool), [255, 255, 255]),
        (np.full((2, 3, 3), (1, 2, 3), np.uint8)[::-1, ::-1], [1, 2, 3]),
    ],
)
def test_arrays(array, pixel):
    before = array.copy()
    frame = read_image(array)
    assert frame.rgb.shape == (2, 3, 3) and frame.rgb[1, 2].tolist() == pixel
    assert not np.shares_memory(frame.rgb, array) and (array == before).all()


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((2, 3, 5)), np.zeros((0, 3, 3)), np.array([["a"]])])
def test_arrays_that_are_no_images(array):
    with pytest.raises(MediaError, match="An image is"):
        read_image(array)


def test_pixel_cap_is_read_from_the_header():
    with pytest.raises(OutOfMemoryError) as caught:
        read_image(png_header(50_000, 50_000))
    assert "50000 x 50000" in str(caught.value) and "64.0" in str(caught.value)
    assert caught.value.exit_code == 5 and caught.value.hint
    with pytest.raises(OutOfMemoryError, match="64 x 48"):
        read_image(encoded(four_colours(), "png"), max_pixels=64 * 48 - 1)
    read_image(encoded(four_colours(), "png"), max_pixels=64 * 48)
    for kind in ("gif", "webp", "avif", "bmp", "tiff"):
        with pytest.raises(OutOfMemoryError):
            read_image(encoded(four_colours(), kind), max_pixels=1000)
    for source in (four_colours(), Image.fromarray(four_colours())):
        with pytest.raises(OutOfMemoryError):
            read_image(source, max_pixels=1000)


def test_the_cap_decides_alone_and_pillow_stays_as_it_was():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, dict(Image.OPEN), list(warnings.filters))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(OutOfMemoryError):  # Pillow would warn about this size, and refuse the one above
            read_image(png_header(10_000, 10_000))
        with pytest.raises(MediaError, match="truncated"):  # above Pillow's own limit: the caller's cap rules
            read_image(png_header(14_000, 14_000), max_pixels=200_000_000)
    after = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, dict(Image.OPEN), list(warnings.filters))
    assert after == before


def test_a_small_file_of_many_pixels_is_refused():
    deflate, rows = zlib.compressobj(1), bytes(100 * (1 + 3 * 8001))
    body = b"".join([deflate.compress(rows) for _ in range(80)]) + deflate.flush()
    bomb = b"\x89PNG\r\n\x1a\n" + png_size(8001, 8000) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    assert len(bomb) < 2_000_000  # for 192 MB of pixels
    with pytest.raises(OutOfMemoryError, match="8001 x 8000"):
        read_image(bomb)


def test_a_huge_jpeg_is_drafted_a_progressive_one_is_not():
    picture = four_colours(640, 480)
    for cap, size in ((640 * 480, (480, 640)), (640 * 480 - 1, (240, 320)), (5000, (60, 80))):
        rgb = read_image(encoded(picture, "jpeg"), max_pixels=cap).rgb
        assert rgb.shape[:2] == size and corners(rgb) == "RGBW"
    with pytest.raises(OutOfMemoryError, match="640 x 480"):
        read_image(encoded(picture, "jpeg"), max_pixels=4000)  # 1/8 is not enough
    with pytest.raises(OutOfMemoryError, match="640 x 480"):
        read_image(encoded(picture, "jpeg", progressive=True), max_pixels=100_000)


@pytest.mark.parametrize("kind", KINDS)
def test_truncated(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = encoded(noise, kind)
    for keep in (0.9, 0.5, 0.2):
        path = tmp_path / f"cut.{kind}"
        path.write_bytes(data[: int(len(data) * keep)])
        with pytest.raises(MediaError) as caught:
            read_image(path)
        assert caught.value.exit_code == 4 and caught.value.hint
        assert str(path) in caught.value.what
        if kind != "tiff":  # of which the directory is at the end, so that it looks damaged
            assert "truncated" in str(caught.value)


def test_damaged():
    junk = png_chunk(b"IDAT", b"these are no pixels")
    data = b"\x89PNG\r\n\x1a\n" + png_size(8, 8) + junk + png_chunk(b"IEND", b"")
    with pytest.raises(MediaError, match="damaged"):
        read_image(data)


def test_what_is_no_image(tmp_path):
    def told(source, *words):
        with pytest.raises(MediaError) as caught:
            read_image(source)
        error = caught.value
        assert error.what and error.why and error.hint
        for word in words:
            assert word in str(error)

    told(tmp_path / "none.png", "none.png", "no such file")
    told(tmp_path, "is a directory")
    (tmp_path / "empty.png").write_bytes(b"")
    told(tmp_path / "empty.png", "empty")
    told(b"", "empty")
    (tmp_path / "text.png").write_text("Grüße, this is text\n" * 500)
    told(tmp_path / "text.png", "is text", "JPEG")
    told(b"\0\1\2\3" * 100, "not known")
    told("https://example.org/a.png", "local files")
    told("a\0b.png")
    told(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is text")  # Pillow would start Ghostscript
    told(write_video(tmp_path / "clip.mp4", [grey(1)] * 3), "is a video")
    os.mkfifo(tmp_path / "pipe")
    told(tmp_path / "pipe", "a pipe or a device")  # and does not wait for a writer


def test_heic_without_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MediaError, match=r"fluvial\[heic\]"):
        read_image(struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(100))


def test_heic_with_its_extra():
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(four_colours())).save(buffer, quality=90)
    before = dict(Image.OPEN)
    assert corners(read_image(buffer.getvalue()).rgb) == "RGBW"
    assert dict(Image.OPEN) == before
    with pytest.raises(OutOfMemoryError):
        read_image(buffer.getvalue(), max_pixels=100)


def test_first_frame_of_an_animation():
    for kind in ("gif", "webp", "png", "avif"):
        rgb = read_image(animation(kind, [four_colours(), grey(3), grey(9)], [100, 100, 100])).rgb
        assert corners(rgb) == "RGBW"


def test_many_threads_at_once():
    sources = [encoded(four_colours(), kind) for kind in KINDS] * 8
    barrier = threading.Barrier(4)

    def read(source):
        return corners(read_image(source).rgb)

    with ThreadPoolExecutor(4, initializer=barrier.wait) as pool:
        assert set(pool.map(read, sources)) == {"RGBW"}


VALID = [encoded(ImageOps.posterize(Image.fromarray(four_colours(16, 12)), 4), kind) for kind in KINDS]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's opinions about broken TIFF directories
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(VALID), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6), st.floats(0.05, 1)
)
def test_hostile_bytes_give_a_frame_or_a_told_error(data, changes, keep):
    damaged = bytearray(data)
    for place, value in changes:
        damaged[int(place * (len(damaged) - 1))] = value
    try:
        frame = read_image(bytes(damaged[: max(1, int(len(damaged) * keep))]), max_pixels=1_000_000)
    except FluvialError as error:
        assert error.exit_code in (4, 5) and error.what and error.why
    else:
        assert frame.height * frame.width <= 1_000_000


@given(st.integers(1, 70_000), st.integers(1, 70_000), st.integers(1, 10_000_000))
def test_fit_keeps_the_cap_and_the_shape(width, height, cap):
    w, h = fit(width, height, cap)
    assert 1 <= w <= width and 1 <= h <= height and w * h <= cap
    if width * height <= cap:
        assert (w, h) == (width, height)
    elif min(w, h) >= 20:
        assert w / h == pytest.approx(width / height, rel=0.1)


@pytest.mark.parametrize("bad", [np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3)), np.zeros((0, 2, 3), np.uint8)])
def test_a_frame_has_one_shape(bad):
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\]"):
        Frame(bad)
