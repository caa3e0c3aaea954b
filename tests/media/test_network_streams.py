"""Streams over a real connection, on this machine: RTSP and HTTP through OpenCV's FFmpeg."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from fluvial.adapters.errors import MediaError
from fluvial.encoders.camera import Camera
from fluvial.encoders.frame import Frame, Gap
from fluvial.encoders.live_sources import open_source
from tests.media import streams


def pictures(count: int) -> list[np.ndarray]:
    """Red, half of it ever lighter."""
    made = []
    for i in range(count):
        rgb = np.zeros((64, 96, 3), np.uint8)
        rgb[..., 0], rgb[:, 48:, 1:] = 200, 255 * i // count
        made.append(rgb)
    return made


@pytest.fixture(params=[streams.rtsp, streams.http], ids=lambda how: how.__name__)
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    with streams.served(request.param, pictures(60)) as where:
        yield where


def test_its_pictures_arrive(address: str) -> None:
    source, seen = open_source(address, fps=10.0, network=True), []
    for thing in source:
        seen.append(thing)
        if len(seen) == 6:
            source.close()
    assert all(isinstance(thing, Frame) and thing.rgb.shape == (64, 96, 3) for thing in seen)
    left = [frame.rgb[:, :40].reshape(-1, 3).mean(0) for frame in seen]
    np.testing.assert_allclose(left, [[200, 0, 0]] * 6, atol=12)  # red, not blue
    light = [float(frame.rgb[:, 56:, 1:].mean()) for frame in seen]
    assert light == sorted(light) and light[-1] > light[0]
    times = [frame.t for frame in seen]
    assert np.diff(times).min() > 0.05 and times[-1] - times[0] > 0.4


def test_it_reconnects_after_the_server_hung_up(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluvial.encoders.camera.GAP", 0.1)
    source, kinds = Camera(address), []
    for thing in source:
        kinds.append(type(thing))
        if Gap in kinds and kinds[-1] is Frame:
            source.close()
    assert kinds[0] is Frame and kinds.count(Gap) == source.gaps >= 1


def test_nobody_there() -> None:
    with streams.served(streams.rtsp, []) as gone:
        pass
    began = time.monotonic()
    with pytest.raises(MediaError, match="Cannot open the stream"):
        list(open_source(gone, network=True))
    assert time.monotonic() - began < 30
