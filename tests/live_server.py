"""A camera on this machine: an HTTP or RTSP server that streams the packets of a generated video at a given pace."""

from __future__ import annotations

import re
import socketserver
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import av
import numpy as np

LIVE = {"libx264": {"tune": "zerolatency", "x264-params": "repeat-headers=1"}}


def encoded(frames: Sequence[np.ndarray], container: str = "mpegts", rate: int = 25) -> list[bytes]:
    """Return the bytes that a live stream sends for each frame ``(H, W, 3)``."""
    file, parts, position = BytesIO(), [], 0
    with av.open(file, "w", format=container) as output:
        codec = {"mpjpeg": "mjpeg", "h264": "libx264"}.get(container, "mpeg2video")
        stream = output.add_stream(codec, rate=rate, options={"g": "10", "bf": "0"} | LIVE.get(codec, {}))
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


@contextmanager
def served_by_rtsp(parts: Sequence[bytes], pace: float = 25, stalls: bool = False) -> Iterator[str]:
    """Serve frames of H.264 to each connection by RTSP, RTP in the same TCP connection, and yield the URL.

    After the last frame the connection ends, or stalls.
    """
    ended = threading.Event()
    sdp = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
    sdp += "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track\r\n"
    headers = {
        "OPTIONS": "Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
        "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n",
        "SETUP": "Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n",
    }

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):
                while request := self.rfile.readline().decode():
                    method, number = request.split()[0], 0
                    while (line := self.rfile.readline().strip()) != b"":
                        if line.lower().startswith(b"cseq:"):
                            number = int(line.split(b":")[1])
                    body = sdp if method == "DESCRIBE" else ""
                    header = headers.get(method, "Session: 1\r\n")
                    self.wfile.write(f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{header}\r\n{body}".encode())
                    if method in ("PLAY", "TEARDOWN"):
                        return self.play() if method == "PLAY" else None

        def play(self) -> None:
            start, sequence = time.monotonic(), 0
            for number, part in enumerate(parts):
                if ended.wait(max(0.0, start + number / pace - time.monotonic())):
                    return
                units = [unit for unit in re.split(b"\0\0\0?\1", part) if unit]
                for unit in units:  # RFC 6184, one unit in each packet
                    last = 0x80 if unit is units[-1] else 0
                    rtp = struct.pack(">BBHII", 0x80, last | 96, sequence, number * 3600, 1) + unit
                    self.wfile.write(struct.pack(">cBH", b"$", 0, len(rtp)) + rtp)
                    sequence += 1
            if stalls:
                ended.wait(60)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"rtsp://user:secret@127.0.0.1:{server.server_address[1]}/live"
        finally:
            ended.set()
            server.shutdown()
            thread.join()
