"""Cameras on this machine's network: RTSP (RFC 2326) with JPEG in RTP (RFC 2435) on the control connection, and JPEG
after JPEG over HTTP. Each connection plays all pictures and is closed."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import cv2
import numpy as np

PACKET = 1200  # bytes of a picture in a packet
SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:track\r\n"
BOUNDARY = "picture"


def jpeg(rgb: np.ndarray) -> bytes:
    ok, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert ok
    return bytes(data)


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The marker segments of a JPEG file, the last of them with all that follows."""
    at = 2
    while True:
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            yield marker, data[at + 2 + size : -2]
            return
        yield marker, data[at + 4 : at + 2 + size]
        at += 2 + size


def packets(rgb: np.ndarray, number: int, t: float) -> list[bytes]:
    """A picture, sides multiples of 16, as RTP packets from `number` on."""
    height, width = rgb.shape[:2]
    parts = list(segments(jpeg(rgb)))
    tables = b"".join(body[i + 1 : i + 65] for kind, body in parts if kind == 0xDB for i in range(0, len(body), 65))
    scan, out = parts[-1][1], list[bytes]()
    for at in range(0, len(scan), PACKET):
        last = at + PACKET >= len(scan)
        rtp = struct.pack(">BBHII", 0x80, 26 | last << 7, (number + len(out)) % 65536, int(90_000 * t), 1)
        head = struct.pack(">II", at, 1 << 24 | 255 << 16 | width // 8 << 8 | height // 8)
        first = struct.pack(">HH", 0, len(tables)) + tables if at == 0 else b""
        out.append(rtp + head + first + scan[at : at + PACKET])
    return out


def rtsp(connection: socket.socket, pictures: Sequence[np.ndarray], interval: float) -> None:
    asked, playing = connection.makefile("rb"), False
    while not playing:
        lines = list[str]()
        while line := asked.readline().decode().strip():
            lines.append(line)
        if not lines:
            return
        method, address, _ = lines[0].split(" ", 2)
        count = next(line.split(":")[1].strip() for line in lines if line.lower().startswith("cseq"))
        extra, body = "", ""
        if method == "DESCRIBE":
            extra, body = f"Content-Base: {address}/\r\nContent-Type: application/sdp\r\n", SDP
        elif method == "SETUP":
            assert any("RTP/AVP/TCP" in line for line in lines)
            extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        playing = method == "PLAY"
        size = f"Content-Length: {len(body)}\r\n" if body else ""
        connection.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {count}\r\n{extra}{size}\r\n{body}".encode())
    number = 0
    for i, picture in enumerate(pictures):
        for packet in packets(picture, number, i * interval):
            connection.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
            number += 1
        time.sleep(interval)


def http(connection: socket.socket, pictures: Sequence[np.ndarray], interval: float) -> None:
    connection.recv(65536)
    kind = f"Content-Type: multipart/x-mixed-replace; boundary={BOUNDARY}"
    connection.sendall(f"HTTP/1.0 200 OK\r\n{kind}\r\n\r\n".encode())
    for picture in pictures:
        data = jpeg(picture)
        head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data + b"\r\n")
        time.sleep(interval)


@contextmanager
def served(
    how: Callable[[socket.socket, Sequence[np.ndarray], float], None],
    pictures: Sequence[np.ndarray],
    interval: float = 0.05,
) -> Iterator[str]:
    """The address of a server that answers `how`, one connection after another."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):  # whoever watched has gone
                how(connection, pictures, interval)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"{how.__name__}://127.0.0.1:{listener.getsockname()[1]}/camera"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
