"""The door for videos: looks at the source (kind, wholeness) and picks the decoder.

OpenCV is always there; PyAV, the `[video]` extra, is preferred where it is installed; animations go to Pillow.
"""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from fluvial.adapters.errors import MediaError, UsageError
from fluvial.encoders.containers import Layout, layout_of
from fluvial.encoders.report import Report
from fluvial.encoders.sampling import sample
from fluvial.encoders.source import IMAGE_KINDS, VIDEO_KINDS, head_of, local, name_of, sniff, unknown
from fluvial.encoders.video_backend import Backend
from fluvial.encoders.video_reader import VideoReader, no_frames

__all__ = ["Report", "VideoReader", "open_video", "sample"]

BackendName = Literal["pyav", "opencv"]


def open_video(
    source: str | Path | bytes, *, backend: BackendName | None = None, max_pixels: int | None = None
) -> VideoReader:
    """Open a video file, or an animated GIF, WebP, PNG or AVIF, for streaming.

    Args:
        source: a path, or the bytes of a file (kept in a temporary file until the reader is closed).
        backend: 'pyav' or 'opencv' for video files; None takes PyAV where it is installed. Animations use Pillow.
        max_pixels: frames with more pixels are scaled down to this many while they are converted.

    Raises:
        MediaError: no such file, not a video, nothing in it that can be decoded.
        OutOfMemoryError: frames above 64 megapixels.
        UsageError: no such backend, or its package is not installed.
    """
    if backend not in (None, "pyav", "opencv"):
        raise UsageError(f"There is no video backend {backend!r}.", "", "Choose 'pyav' or 'opencv'.")
    if max_pixels is not None and max_pixels < 1:
        raise UsageError(f"max_pixels is {max_pixels}.", "A frame has at least one pixel.", "Leave it out for no cap.")
    has_pyav = importlib.util.find_spec("av") is not None
    if backend == "pyav" and not has_pyav:
        raise UsageError("The video backend 'pyav' is not installed.", "", "pip install 'fluvial[video]'")
    place = local(source, "video")
    head = head_of(place)
    kind = sniff(head)
    layout = layout_of(place, kind)
    name = name_of(source)
    if kind in IMAGE_KINDS:
        from fluvial.encoders.video_pillow import PillowBackend

        return VideoReader(lambda: PillowBackend(place, kind, max_pixels), name, layout, "pillow")
    if kind not in VIDEO_KINDS:
        raise unknown(source, "video", head)
    chosen = backend or ("pyav" if has_pyav else "opencv")
    decoder = _decoder(chosen)
    with contextlib.ExitStack() as clean_up:
        path = clean_up.enter_context(_as_file(place))
        try:
            reader = VideoReader(lambda: decoder(path, name, kind, layout, max_pixels), name, layout, chosen)
        except MediaError as error:
            raise no_frames(name, layout, error.why) from error
        reader.on_close = clean_up.pop_all().close
    return reader


@contextlib.contextmanager
def _as_file(place: Path | bytes) -> Iterator[Path]:
    if isinstance(place, Path) and "%" not in str(place):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="fluvial-") as folder:
        path = Path(folder) / "video"
        if isinstance(place, bytes):
            path.write_bytes(place)
        else:
            path.symlink_to(place)  # FFmpeg would take a name like `a_%d.jpg` for a sequence of images
        yield path


def _decoder(name: str) -> Callable[[Path, str, str, Layout, int | None], Backend]:
    if name == "pyav":
        from fluvial.encoders.video_pyav import PyAVBackend, import_av

        import_av()  # here, so that what is wrong with it is said in its own words
        return PyAVBackend
    from fluvial.encoders.video_opencv import OpenCVBackend, import_cv2

    import_cv2()
    return OpenCVBackend
