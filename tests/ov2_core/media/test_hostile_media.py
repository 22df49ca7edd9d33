"""Files that try to make a decoder read something else: another file of this machine, or a URL.

What is opened is not inferred from what comes out but watched: inotify on the file that they point to, and a server that counts
connections. Each kind of playlist is held against FFmpeg without our whitelists, which does follow it; so the files are real.
"""

import contextlib
import ctypes
import io
import os
import select
import shutil
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import pytest
from PIL import Image

from ov2_core.errors import BadItemError
from ov2_core.media.container import limit_pixels, open_video
from ov2_core.media.decode import DecodeStats
from ov2_core.media.image import load_image
from ov2_core.media.live import LiveStatus, live_frames, open_live
from ov2_core.media.probe import probe_video

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify is Linux's")
_IN_OPEN = 0x20


class Watch:
    """Whether any of the files was opened since the last look."""

    def __init__(self, *paths: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._descriptor >= 0
        for path in paths:
            assert self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), _IN_OPEN) >= 0

    def opened(self) -> bool:
        try:
            return bool(os.read(self._descriptor, 1 << 16))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._descriptor)


@dataclass
class Trap:
    """What hostile files point to."""

    folder: Path
    video: Path
    port: int
    watch: Watch
    connections: list[object] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/canary.mp4"

    def sprung(self) -> bool:
        return bool(self.connections) or self.watch.opened()


@pytest.fixture
def trap(tmp_path: Path, make_clip: Callable[..., Path]) -> Iterator[Trap]:
    folder = tmp_path / "trap"
    folder.mkdir()
    video = make_clip(folder / "canary.mp4")
    with av.open(str(video)) as source, av.open(str(folder / "canary.ts"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    Image.new("RGB", (64, 48), "red").save(folder / "img001.jpg")
    listening = socket.create_server(("127.0.0.1", 0))
    watch = Watch(video, folder / "canary.ts", folder / "img001.jpg")
    trap = Trap(folder, video, listening.getsockname()[1], watch)
    stop = threading.Event()

    def accept() -> None:
        while not stop.is_set():
            if select.select([listening], [], [], 0.05)[0]:
                connection, address = listening.accept()
                trap.connections.append(address)
                connection.close()

    thread = threading.Thread(target=accept)
    thread.start()
    yield trap
    stop.set()
    thread.join()
    listening.close()
    watch.close()


def hls(trap: Trap) -> bytes:
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n"
    uris = (f"file://{trap.folder}/canary.ts", "canary.ts", trap.url)
    return (head + "".join(f"#EXTINF:1.2,\n{uri}\n" for uri in uris) + "#EXT-X-ENDLIST\n").encode()


def hls_key(trap: Trap) -> bytes:
    return hls(trap).replace(b"#EXTINF", f'#EXT-X-KEY:METHOD=AES-128,URI="{trap.url}"\n#EXTINF'.encode(), 1)


def dash(trap: Trap) -> bytes:
    return f"""<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S" minBufferTime="PT1S"
 profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4">
<Representation id="1" bandwidth="1000" codecs="avc1.42c00b" width="112" height="84"><BaseURL>{trap.url}</BaseURL>
<SegmentList><Initialization sourceURL="{trap.url}"/><SegmentURL media="{trap.url}"/></SegmentList>
</Representation></AdaptationSet></Period></MPD>""".encode()


def concat(trap: Trap) -> bytes:
    return f"ffconcat version 1.0\nfile '{trap.video}'\nfile canary.mp4\nfile '{trap.url}'\n".encode()


def sdp(trap: Trap) -> bytes:
    return (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
        f"a=control:rtsp://127.0.0.1:{trap.port}/x\r\nm=video {trap.port} RTP/AVP/TCP 96\r\na=rtpmap:96 H264/90000\r\n"
    ).encode()


def asx(trap: Trap) -> bytes:
    return f'<asx version="3.0"><entry><ref href="{trap.url}"/><ref href="{trap.video}"/></entry></asx>'.encode()


def cue(trap: Trap) -> bytes:
    return f'FILE "{trap.video}" MP3\r\n  TRACK 01 AUDIO\r\n    INDEX 01 00:00:00\r\n'.encode()


def smil(trap: Trap) -> bytes:
    return f'<smil><body><video src="{trap.url}"/><video src="canary.mp4"/></body></smil>'.encode()


def redirect(trap: Trap) -> bytes:
    return f"[Reference]\r\nRef1={trap.url}\r\nRef2={trap.video}\r\n".encode()


def subtitles(trap: Trap) -> bytes:
    return f"WEBVTT\n\n00:00.000 --> 00:01.000\n{trap.url}\n".encode()


def microdvd(trap: Trap) -> bytes:
    return f"# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:00:000, filepos: 0 {trap.video}\n".encode()


def imf(trap: Trap) -> bytes:
    name = "http://www.smpte-ra.org/schemas/2067-3/2016"
    return f'<CompositionPlaylist xmlns="{name}"><Id>urn:uuid:1</Id><a>{trap.url}</a></CompositionPlaylist>'.encode()


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), kind) + content


def with_alias(movie: bytes, path: str) -> bytes:
    """A movie whose track's samples lie in another file, by a QuickTime alias record with an absolute path and a `url ` beside."""
    name = path.encode() + b"\0" * (len(path) % 2)
    alias = bytes(10) + bytes([0]) + bytes(27) + bytes(12) + bytes([0]) + bytes(63) + bytes(16)
    alias += (
        struct.pack(">hh", 1, 1) + bytes(16) + struct.pack(">HH", 2, len(name)) + name + struct.pack(">HH", 0xFFFF, 0)
    )
    entries = box(b"alis", bytes(4) + alias) + box(b"url ", bytes(4) + f"file://{path}".encode() + b"\0")
    return _rewritten(movie, box(b"dref", bytes(4) + struct.pack(">I", 2) + entries))


def with_url(movie: bytes, url: str) -> bytes:
    """The same by MP4's own `url ` entry."""
    entry = box(b"url ", bytes(4) + url.encode() + b"\0")
    return _rewritten(movie, box(b"dref", bytes(4) + struct.pack(">I", 1) + entry))


def _rewritten(data: bytes, dref: bytes) -> bytes:
    out = b""
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + size]
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
            out += box(kind, _rewritten(content, dref))
        else:
            out += dref if kind == b"dref" else data[at : at + size]
        at += size
    return out


PLAYLISTS = (hls, hls_key, dash, concat, sdp, asx, cue, smil, redirect, subtitles, microdvd, imf)
UNGUARDED = {"protocol_whitelist": "file,http,tcp,crypto,data,rtp,udp", "allowed_extensions": "ALL", "safe": "0"}


@pytest.mark.parametrize(("write", "name"), [(hls, "list.m3u8"), (concat, "list.mp4")], ids=["hls", "concat"])
def test_the_trap_springs_without_our_whitelists(trap: Trap, write: Callable[[Trap], bytes], name: str) -> None:
    path = trap.folder / name
    path.write_bytes(write(trap))
    assert not trap.sprung()
    with (
        contextlib.suppress(av.error.FFmpegError),
        av.open(str(path), options={**UNGUARDED, "extension_picky": "0"}) as c,
    ):
        next(c.demux(video=0))
    assert trap.sprung()


@pytest.mark.parametrize("write", PLAYLISTS, ids=lambda f: f.__name__)
def test_a_playlist_opens_nothing_whatever_its_name(trap: Trap, write: Callable[[Trap], bytes]) -> None:
    data = write(trap)
    suffixes = ("mp4", "mov", "webm", "ts", "m3u8", "mpd", "ffconcat", "sdp", "asx", "cue", "idx", "jpg")
    for suffix in suffixes:
        path = trap.folder / f"list.{suffix}"
        path.write_bytes(data)
        for source in (str(path), io.BytesIO(data)):
            with pytest.raises(BadItemError) as caught, open_video(source, stage="probe"):
                pass
            assert caught.value.reason == "not_media", suffix
            with pytest.raises(BadItemError), open_live(source, timeout_seconds=2):
                pass
        with pytest.raises(BadItemError):
            load_image(str(path), max_source_px=1 << 20)
    assert not trap.sprung()


def test_a_name_that_is_a_pattern_opens_no_series(trap: Trap) -> None:
    pattern = trap.folder / "img%03d.jpg"
    shutil.copyfile(trap.folder / "img001.jpg", pattern)
    trap.sprung()
    for name in (str(pattern), str(trap.folder / "img*.jpg"), str(trap.folder / "img%03d.mp4")):
        with pytest.raises(BadItemError), open_video(name, stage="probe"):
            pass
    assert load_image(str(pattern), max_source_px=1 << 20).width == 64
    assert not trap.sprung()


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_samples_in_another_file_are_not_fetched(trap: Trap, suffix: str) -> None:
    movie = trap.video.read_bytes()
    trap.sprung()
    path = trap.folder / f"alias.{suffix}"
    path.write_bytes(_emptied(with_alias(movie, str(trap.video))))
    try:
        with av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"}) as container:
            next(container.demux(video=0))
    except av.error.FFmpegError:
        pass
    assert trap.sprung(), "the alias is no real one"
    for data in (
        path.read_bytes(),
        _emptied(with_url(movie, trap.url)),
        _emptied(with_url(movie, f"file://{trap.video}")),
    ):
        path.write_bytes(data)
        for source in (str(path), io.BytesIO(data)):
            with contextlib.suppress(BadItemError):
                probe_video(source)
            stats = DecodeStats()
            with contextlib.suppress(BadItemError), open_live(source, timeout_seconds=2) as (container, stream):
                assert not list(live_frames(container, stream, stats=stats, status=LiveStatus()))
    assert not trap.sprung()


def _emptied(movie: bytes) -> bytes:
    """Without its own samples, so that frames could come from elsewhere alone."""
    at = movie.index(b"mdat") + 4
    size = struct.unpack_from(">I", movie, at - 8)[0]
    return movie[:at] + bytes(size - 8) + movie[at + size - 8 :]


def test_an_attachment_is_passed_over(trap: Trap) -> None:
    path = trap.folder / "attached.mkv"
    with av.open(str(trap.video)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        target.add_attachment("../../etc/evil.m3u8", "application/x-mpegurl", hls(trap))
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    trap.sprung()
    assert probe_video(str(path)).num_frames == 12
    assert not trap.sprung()
    assert not list(trap.folder.parent.rglob("evil.m3u8"))


def test_postscript_is_no_image(tmp_path: Path) -> None:
    """Pillow hands EPS to Ghostscript, a program of its own."""
    path = tmp_path / "a.jpg"
    Image.new("RGB", (32, 32), "red").save(path, format="EPS")
    with pytest.raises(BadItemError) as caught:
        load_image(str(path), max_source_px=1 << 20)
    assert caught.value.reason == "not_media"


def test_a_frame_above_the_limit_is_never_decoded(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    path = make_clip(tmp_path / "small.mp4", num_frames=4)
    with pytest.raises(BadItemError, match="112 x 84 px exceeds max_source_px") as caught:
        probe_video(str(path), max_source_px=112 * 84 - 1)
    assert caught.value.reason == "too_large"
    with open_video(str(path), stage="tokenize") as (container, stream):
        limit_pixels(stream, 100 * 80)  # as for a stream whose second header says another size than its first
        with pytest.raises(av.error.FFmpegError):
            list(container.decode(stream))
