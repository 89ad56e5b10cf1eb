"""Pipes, sockets, devices and folders in place of a video or a frame raise one error and never block."""

from __future__ import annotations

import os
import socket
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dmgal.videos.catalog.files import content_hash, quick_hash
from dmgal.videos.decoding.base import VideoError
from dmgal.videos.decoding.stream import TimedFrames
from dmgal.videos.decoding.video import open_video, probe_video, read_clip


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)  # a socket's path must be short


SPECIAL: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}
READERS: list[Callable[[Path], object]] = [
    open_video,
    probe_video,
    lambda path: read_clip(path, range),
    lambda path: list(TimedFrames(path, 5)),
]


@pytest.mark.parametrize("name", ["a.mp4", "a.MKV", "a.gif", "a.zip", "a"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_special_file_in_place_of_a_video(tmp_path, monkeypatch, kind, name) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    SPECIAL[kind](path)
    for read in READERS:
        with pytest.raises(VideoError, match=f"{kind} instead of a regular file"):
            read(path)
    assert content_hash(path) == quick_hash(path) == 0


@pytest.mark.parametrize("name", ["0.jpg", "1.jpg"])
@pytest.mark.parametrize("kind", [*SPECIAL, "a folder"])
def test_special_file_in_place_of_a_frame(tmp_path, monkeypatch, kind, name) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("0.jpg")
    Path(name).unlink(missing_ok=True)
    SPECIAL.get(kind, Path.mkdir)(tmp_path / name)
    if name == "0.jpg":
        for read in READERS[1:]:
            with pytest.raises(VideoError, match=rf"frame 0\.jpg: {kind}"):
                read(tmp_path)
    else:
        probe, timed = probe_video(tmp_path), TimedFrames(tmp_path, 5)
        assert len(list(timed)) == probe.num_frames == 1 and probe.problem == timed.damage
        assert probe.problem == f"frame 1.jpg: {kind} instead of a regular file"
    assert content_hash(tmp_path) == quick_hash(tmp_path) == 0


@pytest.mark.parametrize("mode", [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFLNK, stat.S_IFDIR])
def test_special_member_of_a_zip_file_is_read_as_bytes(tmp_path, mode) -> None:
    member = zipfile.ZipInfo("0.jpg")
    member.external_attr = (mode | 0o644) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, "/dev/zero" if mode == stat.S_IFLNK else b"")
    for read in READERS[1:]:
        with pytest.raises(VideoError, match=r"frame 0\.jpg: it is (text|empty)"):
            read(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["around.mp4", "null\0.mp4"])
def test_paths_that_lead_nowhere(tmp_path, name) -> None:
    (tmp_path / "around.mp4").symlink_to(tmp_path / "around.mp4")
    for read in READERS:
        with pytest.raises(VideoError):
            read(tmp_path / name)


PLAYLISTS = {
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {}\n",
    "DASH": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:DASH:schema:MPD:2011' "
    "profiles='urn:mpeg:dash:profile:isoff-live:2011'><Period><AdaptationSet mimeType='video/mp4'>"
    "<Representation id='a' bandwidth='1'><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=control:{}\n",
    "index of subtitles": "# VobSub index file, v7\nlangidx: 0\n# {}\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("target", ["pipe.ts", "secret.ts", "http://192.0.2.1/a.ts"])
def test_playlist_named_like_a_video_is_not_followed(tmp_path, write_video, kind, target) -> None:
    os.mkfifo(tmp_path / "pipe.ts")
    write_video(tmp_path / "secret.ts", range(3), "mpeg1video")
    (tmp_path / "list.mp4").write_text(PLAYLISTS[kind].format(target))
    for read in READERS:
        with pytest.raises(VideoError, match="it is text, which begins with"):
            read(tmp_path / "list.mp4")
