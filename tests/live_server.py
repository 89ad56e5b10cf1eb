"""A camera on this machine: an HTTP server that streams the packets of a generated video at a given pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import av
import numpy as np


def encoded(frames: Sequence[np.ndarray], container: str = "mpegts", rate: int = 25) -> list[bytes]:
    """Return the bytes that a live stream sends for each frame ``(H, W, 3)``."""
    file, parts, position = BytesIO(), [], 0
    with av.open(file, "w", format=container) as output:
        codec = "mjpeg" if container == "mpjpeg" else "mpeg2video"
        stream = output.add_stream(codec, rate=rate, options={"g": "10", "bf": "0"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if container == "mpjpeg" else "yuv420p"
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, rate)
            output.mux(stream.encode(picture))
            parts.append(file.getvalue()[position:])
            position = len(file.getvalue())
        output.mux(stream.encode())
    parts[-1] += file.getvalue()[position:]
    return parts


class Camera:
    """A camera that sends frames to each connection, one connection after the other.

    Args:
        parts: bytes of each frame.
        pace: frames per second. None: as fast as the reader takes them.
        frames: number of frames for each connection, then it ends, or stalls if ``stalls``. Further connections are
            refused.
        content_type: of the stream.
    """

    def __init__(
        self,
        parts: Sequence[bytes],
        pace: float | None = None,
        frames: Sequence[int] = (10**9,),
        stalls: bool = False,
        content_type: str = "video/mp2t",
    ) -> None:
        self.parts, self.pace, self.frames, self.stalls = parts, pace, list(frames), stalls
        self.content_type = content_type
        self.connections = 0
        self.ended = threading.Event()
        self.url = ""

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        if self.connections >= len(self.frames):
            handler.send_error(503)
            return
        count = min(self.frames[self.connections], len(self.parts))
        self.connections += 1
        handler.send_response(200)
        handler.send_header("Content-Type", self.content_type)
        handler.end_headers()
        start = time.monotonic()
        for number, part in enumerate(self.parts[:count]):
            if self.pace is not None and self.ended.wait(max(0.0, start + number / self.pace - time.monotonic())):
                return
            handler.wfile.write(part)
        if self.stalls:
            self.ended.wait(60)


@contextmanager
def served(camera: Camera) -> Iterator[Camera]:
    """Serve a camera within the context, at ``camera.url``."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):
                camera.send(self)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    camera.url = f"http://127.0.0.1:{server.server_port}/live.ts?token=secret"
    try:
        yield camera
    finally:
        camera.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
