"""A corpus that means harm: hundreds of small files that are damaged, lie, or are no video, with good clips between them.

Enters: a folder. Leaves: files, and one PoisonRow each. Everything is made of a few small real files by turning bits, cutting,
rewriting fields and renaming; seeded, so the same call writes the same corpus. Good rows are canary clips, whose blocks say which
video they are of: a row that was lost, or bound to another one's pixels, shows.
"""

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import numpy as np
from PIL import Image

from ov2_core.evals.clips import canary_frame, write_canary_clip, write_clip

COLUMNS, ROWS, FRAMES, FPS = 4, 3, 12, 10.0
GOOD_EVERY = 8
"""A good clip after so many bad files."""
_BASES: tuple[tuple[str, str, str], ...] = (
    ("h264.mp4", "libx264", ""),
    ("h264-late-index.mov", "libx264", ""),
    ("mpeg4.avi", "mpeg4", ""),
    ("vp9.webm", "libvpx-vp9", ""),
    ("h264.mkv", "libx264", ""),
    ("h264.ts", "libx264", "mpegts"),
    ("h264.flv", "libx264", ""),
    ("mpeg4.asf", "mpeg4", "asf"),
    ("hevc.mp4", "libx265", ""),
)
_CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"dinf", b"edts", b"udta", b"mvex"})
_HEAD = 4096
"""Where headers are: bits are turned more densely here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoisonRow:
    """One file, and what may become of it."""

    name: str
    family: str
    media: Literal["video", "image"] = "video"
    video_id: int | None = None
    """Of a good clip: it must be committed, with these pixels. None: committed with whatever decodes, or quarantined."""
    frames_fps: float | None = None


def write_poison(folder: Path, *, per_family: int | None = None, seed: int = 0) -> list[PoisonRow]:
    """Writes the corpus.

    Args:
        per_family: at most so many files of each family; None: all, over 300.

    Returns:
        Rows in the order of a manifest, good ones between the bad.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows: list[PoisonRow] = []
    families: dict[str, int] = {}
    for family, name, data in _poison(folder, rng, small=per_family is not None):
        if per_family is not None and families.get(family, 0) >= per_family:
            continue
        families[family] = families.get(family, 0) + 1
        if data is not None:
            (folder / name).write_bytes(data)
        media: Literal["video", "image"] = "image" if family.startswith("image") else "video"
        rows.append(PoisonRow(name=name, family=family, media=media, frames_fps=1.0 if "folder" in family else None))
        if len(rows) % GOOD_EVERY == GOOD_EVERY - 1:
            rows.append(_good(folder, len(rows)))
    rows.append(_good(folder, len(rows)))
    return rows


def _good(folder: Path, number: int) -> PoisonRow:
    name = f"good-{number:04d}.mp4"
    write_canary_clip(folder / name, video_id=number, num_frames=FRAMES, fps=FPS, columns=COLUMNS, rows=ROWS)
    return PoisonRow(name=name, family="good", video_id=number)


def _poison(folder: Path, rng: np.random.Generator, *, small: bool) -> Iterator[tuple[str, str, bytes | None]]:
    """(family, file name, content; None where it is written already)."""
    bases = _bases(folder, few=small)
    mp4 = bases["h264.mp4"]
    yield from _flipped(bases, rng)
    yield from _cut_at_boxes(mp4)
    yield from _cut_anywhere(bases)
    yield from _lying_boxes(mp4, rng)
    yield from _lying_fields(bases)
    yield from _lengths(folder)
    yield from _noise(bases, rng)
    yield from _wrong_names(mp4)
    yield from _images(rng)
    yield from _odd_files(folder)


def _frames(count: int) -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    for index in range(count):
        yield canary_frame(video_id=0xBAD, frame=index, columns=COLUMNS, rows=ROWS)


def _bases(folder: Path, *, few: bool) -> dict[str, bytes]:
    made = {}
    for name, codec, container in _BASES[:3] if few else _BASES:
        path = folder / f"base-{name}"
        write_clip(
            path, _frames(FRAMES), fps=FPS, codec=codec, container=container or None,
            gop_frames=6, faststart="late" not in name,
        )  # fmt: skip
        made[name] = path.read_bytes()
        path.unlink()
    return made


def _flipped(bases: dict[str, bytes], rng: np.random.Generator) -> Iterator[tuple[str, str, bytes]]:
    for name, data in bases.items():
        for number, (count, stop) in enumerate(
            [(1, _HEAD), (1, None), (8, _HEAD), (16, None), (64, _HEAD), (200, None)]
        ):
            array = np.frombuffer(data, np.uint8).copy()
            places = rng.integers(0, min(len(array), stop or len(array)), count)
            np.bitwise_xor.at(array, places, (1 << rng.integers(0, 8, count)).astype(np.uint8))
            yield "bit flips", f"flip-{number}-{name}", array.tobytes()


def _boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of every box of an MP4, nested ones too."""
    at, end = start, len(data) if end is None else end
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        if size < 8:
            return
        yield kind, at, at + size
        if kind in _CONTAINERS:
            yield from _boxes(data, at + 8, at + size)
        at += size


def _cut_at_boxes(mp4: bytes) -> Iterator[tuple[str, str, bytes]]:
    for number, (kind, start, end) in enumerate(_boxes(mp4)):
        for part, at in (("start", start), ("header", start + 8), ("middle", (start + end) // 2)):
            if at:
                yield "cut at a box", f"cut-{number:02d}-{kind.decode('latin-1').strip()}-{part}.mp4", mp4[:at]


def _cut_anywhere(bases: dict[str, bytes]) -> Iterator[tuple[str, str, bytes]]:
    for name, data in bases.items():
        for share in (0.02, 0.3, 0.7, 0.95):
            yield "cut", f"cut-{int(share * 100):02d}-{name}", data[: int(len(data) * share)]


def _lying_boxes(mp4: bytes, rng: np.random.Generator) -> Iterator[tuple[str, str, bytes]]:
    """Each box of the index filled with ones, with zeros and with noise, and with sizes that cannot be."""
    for number, (kind, start, end) in enumerate(_boxes(mp4)):
        label = f"{number:02d}-{kind.decode('latin-1').strip()}.mp4"
        if kind not in _CONTAINERS and kind not in (b"mdat", b"free", b"ftyp"):
            for how, fill in (("ones", b"\xff"), ("zeros", b"\0"), ("noise", None)):
                size = end - start - 12
                content = rng.bytes(size) if fill is None else fill * size
                yield "lying box", f"{how}-{label}", mp4[: start + 12] + content + mp4[end:]
        for size in (0, 1, 0x7FFFFFFF):
            yield "lying size", f"size-{size:x}-{label}", mp4[:start] + struct.pack(">I", size) + mp4[start + 4 :]


def _patched(mp4: bytes, kind: bytes, offset: int, value: bytes) -> bytes:
    start = next(start for found, start, _ in _boxes(mp4) if found == kind)
    at = start + offset
    return mp4[:at] + value + mp4[at + len(value) :]


def _lying_fields(bases: dict[str, bytes]) -> Iterator[tuple[str, str, bytes]]:
    mp4 = bases["h264.mp4"]
    big, huge = struct.pack(">I", 16384 << 16), struct.pack(">HH", 16384, 16384)
    changes: dict[str, tuple[bytes, int, bytes]] = {
        "mvhd-duration": (b"mvhd", 24, b"\xff\xff\xff\xf0"),
        "mvhd-timescale-0": (b"mvhd", 20, bytes(4)),
        "mdhd-duration": (b"mdhd", 24, b"\x7f\xff\xff\xff"),
        "mdhd-timescale-0": (b"mdhd", 20, bytes(4)),
        "mdhd-timescale-1": (b"mdhd", 20, b"\0\0\0\1"),
        "mdhd-timescale-max": (b"mdhd", 20, b"\xff\xff\xff\xff"),
        "tkhd-16k": (b"tkhd", 84, big + big),
        "tkhd-0": (b"tkhd", 84, bytes(8)),
        "stsd-16k": (b"stsd", 16 + 8 + 24, huge),
        "stsd-0": (b"stsd", 16 + 8 + 24, bytes(4)),
        "stsd-65535": (b"stsd", 16 + 8 + 24, b"\xff\xff\xff\xff"),
        "stts-count": (b"stts", 12, b"\x7f\xff\xff\xff"),
        "stts-frames": (b"stts", 16, b"\x7f\xff\xff\xff"),
        "stts-delta": (b"stts", 20, b"\x7f\xff\xff\xff"),
        "stts-delta-0": (b"stts", 20, bytes(4)),
        "stsz-count": (b"stsz", 16, b"\x7f\xff\xff\xff"),
        "stsz-count-0": (b"stsz", 16, bytes(4)),
        "stsz-size": (b"stsz", 20, b"\x7f\xff\xff\xff"),
        "stco-count": (b"stco", 12, b"\x7f\xff\xff\xff"),
        "stco-far": (b"stco", 16, b"\x7f\xff\xff\xff"),
        "stco-0": (b"stco", 16, bytes(4)),
        "stsc-0": (b"stsc", 16, bytes(12)),
        "stsc-many": (b"stsc", 20, b"\x7f\xff\xff\xff"),
        "elst-long": (b"elst", 16, b"\x7f\xff\xff\xff"),
        "elst-late": (b"elst", 20, b"\x7f\xff\xff\xff"),
        "elst-count": (b"elst", 12, b"\x7f\xff\xff\xff"),
    }
    for name, (kind, offset, value) in changes.items():
        yield "lying field", f"field-{name}.mp4", _patched(mp4, kind, offset, value)
    avi = bases["mpeg4.avi"]
    for name, tag, offset, value in (
        ("strf-16k", b"strf", 12, struct.pack("<II", 16384, 16384)),
        ("rate-0", b"strh", 8 + 20, bytes(8)),
        ("rate-max", b"strh", 8 + 20, struct.pack("<II", 1, 0xFFFFFFFF)),
        ("length-max", b"strh", 8 + 32, b"\xff\xff\xff\x7f"),
    ):
        at = avi.index(tag) + offset
        yield "lying field", f"field-{name}.avi", avi[:at] + value + avi[at + len(value) :]
    yield "huge picture", "huge.y4m", b"YUV4MPEG2 W16384 H16384 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(1 << 16)
    yield (
        "huge picture",
        "huge-max.y4m",
        b"YUV4MPEG2 W99999999 H99999999 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(1 << 16),
    )
    ivf = struct.pack("<4sHH4sHHIIII", b"DKIF", 0, 32, b"VP80", 16383, 16383, 25, 1, 1, 0)
    vp8 = b"\x10\x02\x00\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383) + bytes(200)
    yield "huge picture", "huge.ivf", ivf + struct.pack("<IQ", len(vp8), 0) + vp8
    gif = (
        b"GIF89a"
        + struct.pack("<HH", 65535, 65535)
        + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0"
        + b"\xff" * 4
        + b"\0\2\2D\1\0;"
    )
    yield "huge picture", "huge.gif", gif


def _lengths(folder: Path) -> Iterator[tuple[str, str, bytes | None]]:
    for count in (1, 2, 3):
        for suffix in ("mp4", "mkv", "avi"):
            name = f"frames-{count}.{suffix}"
            codec = "mpeg4" if suffix == "avi" else "libx264"
            write_clip(folder / name, _frames(count), fps=FPS, codec=codec)
            yield "few frames", name, None
    for suffix in ("mp4", "mkv", "avi"):
        name = f"frames-0.{suffix}"
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264" if suffix != "avi" else "mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
            container.start_encoding()
        yield "few frames", name, None


def _noise(bases: dict[str, bytes], rng: np.random.Generator) -> Iterator[tuple[str, str, bytes]]:
    for size in (1, 7, 12, 100, 4096, 1 << 20):
        for suffix in ("mp4", "webm", "avi"):
            yield "noise", f"noise-{size}.{suffix}", rng.bytes(size)
    yield "noise", "zeros.mp4", bytes(1 << 16)
    yield "noise", "ones.ts", b"\xff" * (1 << 16)
    yield "noise", "sync.ts", (b"G" + bytes(187)) * 400
    for name, data in bases.items():
        yield "noise", f"head-then-noise-{name}", data[:64] + rng.bytes(1 << 14)
    asf, mxf = b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\0\xaa\0b\xcel", b"\x06\x0e+4\x02\x05\x01\x01"
    for magic in (b"OggS", b"FLV\1\5\0\0\0\x09", asf, mxf, b".RMF"):
        yield "noise", f"magic-{zlib.crc32(magic):08x}.mp4", magic + rng.bytes(1 << 14)
    for codec in ("h264", "hevc", "ivf", "obu", "m4v", "vc1", "dv"):
        yield "noise", f"noise.{codec}", b"\0\0\0\1\x67" + rng.bytes(1 << 14)


def _wrong_names(mp4: bytes) -> Iterator[tuple[str, str, bytes]]:
    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "blue").save(picture, "PNG")
    listed: dict[str, bytes] = {
        "png": picture.getvalue(),
        "zip": b"PK\3\4" + bytes(200),
        "pdf": b"%PDF-1.7\n%\xe2\xe3\n1 0 obj\n<<>>\nendobj\n",
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "json": b'{"error": {"code": 403, "message": "expired"}}',
        "s3-error": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "gzip": gzip.compress(mp4, mtime=0),
        "elf": b"\x7fELF\2\1\1" + bytes(300),
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n",
        "m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "sdp": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 96\r\n",
        "srt": b"1\n00:00:00,000 --> 00:00:01,000\nHello\n",
        "text": b"This is no video.\n" * 30,
        "newlines": b"\n" * 5000,
    }
    for name, data in listed.items():
        for suffix in ("mp4", "mkv"):
            yield "another format", f"{name}.{suffix}", data
    for suffix in ("jpg", "avi", "webm", "txt", "m3u8"):
        yield "another name", f"really-mp4.{suffix}", mp4


def _images(rng: np.random.Generator) -> Iterator[tuple[str, str, bytes]]:
    noise = Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8))
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        out = io.BytesIO()
        noise.save(out, kind)
        data = out.getvalue()
        for share in (0.1, 0.6):
            yield "image cut", f"image-cut-{int(share * 100)}.{kind.lower()}", data[: int(len(data) * share)]
        array = np.frombuffer(data, np.uint8).copy()
        array[rng.integers(0, min(len(array), 200), 12)] ^= 0x55
        yield "image flipped", f"image-flipped.{kind.lower()}", array.tobytes()
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + header
        + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    body = zlib.compress(bytes(1 << 20))
    chunk = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    yield "image bomb", "bomb.png", bomb + chunk
    yield (
        "image bomb",
        "bomb.bmp",
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 65000, 65000, 1, 24, 0, 0, 0, 0, 0, 0),
    )
    yield (
        "image bomb",
        "program.jpg",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n%%EOF\n",
    )
    yield "image noise", "noise.jpg", b"\xff\xd8\xff\xe0" + rng.bytes(4000)
    yield "image noise", "noise.png", b"\x89PNG\r\n\x1a\n" + rng.bytes(4000)


def _odd_files(folder: Path) -> Iterator[tuple[str, str, bytes | None]]:
    yield "empty", "empty.mp4", b""
    yield "empty", "empty.mkv", b""
    (folder / "folder.mp4").mkdir(exist_ok=True)
    yield "no file", "folder.mp4", None
    yield "no file", "nowhere.mp4", None
    loop = folder / "loop.mp4"
    if not loop.is_symlink():
        loop.symlink_to("loop.mp4")
    yield "no file", "loop.mp4", None
    frames = folder / "frames-of-noise"
    frames.mkdir(exist_ok=True)
    (frames / "0.jpg").write_bytes(b"no image")
    yield "folder of frames", "frames-of-noise", None
    (folder / "frames-none").mkdir(exist_ok=True)
    yield "folder of frames", "frames-none", None
