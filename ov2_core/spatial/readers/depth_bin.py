"""ScanNet++'s iphone/depth.bin: depth of all frames of a recording in one file, 256 x 192, in millimetres.

Layout (as its toolkit, github.com/scannetpp/scannetpp, unpacks it; not checked against a download), one of:
- frames one after the other, each a 32-bit little-endian number of bytes and as many bytes: an LZ4 block of uint16 millimetres,
  or a raw deflate stream of float32 metres;
- one raw deflate stream of float32 metres, all frames in a row.
Only the frames asked for are unpacked, but of a single stream all before them are. LZ4 blocks are read here (the block format is a
page long: github.com/lz4/lz4, doc/lz4_Block_format.md), which saves a dependency.
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

HEIGHT, WIDTH = 192, 256
_FLOAT_BYTES, _SHORT_BYTES = HEIGHT * WIDTH * 4, HEIGHT * WIDTH * 2


def read_depth_frames(path: str, wanted: Sequence[int]) -> dict[int, npt.NDArray[np.float32]]:
    """Depth in metres [192, 256] of the frames asked for that the file holds.

    Raises:
        ValueError: it is in neither of the two layouts.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        places = _frame_places(path)
        if places is None:
            return _of_one_stream(file.read(), wanted, path)
        frames = {}
        for number in wanted:
            if number < len(places):
                offset, size = places[number]
                file.seek(offset)
                frames[number] = _unpacked(file.read(size), path, number)
        return frames


def count_depth_frames(path: str) -> int | None:
    """How many frames the file holds; None where only unpacking all of it would tell. Raises OSError."""
    places = _frame_places(path)
    return None if places is None else len(places)


def _frame_places(path: str) -> list[tuple[int, int]] | None:
    """(offset, bytes) of each frame, if lengths lead from one to the next up to the file's end."""
    places = []
    with open(path, "rb") as file:
        end = file.seek(0, 2)
        at = 0
        while at < end:
            file.seek(at)
            head = file.read(4)
            size = struct.unpack("<I", head)[0] if len(head) == 4 else 0
            if not size or at + 4 + size > end:
                return None
            places.append((at + 4, size))
            at += 4 + size
    return places


def _of_one_stream(data: bytes, wanted: Sequence[int], path: str) -> dict[int, npt.NDArray[np.float32]]:
    if not wanted:
        return {}
    try:
        raw = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, (max(wanted) + 1) * _FLOAT_BYTES)
    except zlib.error as error:
        raise ValueError(f"{path}: neither frames with their lengths nor one deflate stream: {error}") from error
    held = len(raw) // _FLOAT_BYTES
    return {n: _metres(raw[n * _FLOAT_BYTES : (n + 1) * _FLOAT_BYTES]) for n in wanted if n < held}


def _unpacked(data: bytes, path: str, number: int) -> npt.NDArray[np.float32]:
    try:
        raw = lz4_block(data, _SHORT_BYTES)
        return (np.frombuffer(raw, "<u2").reshape(HEIGHT, WIDTH) / 1000).astype(np.float32)
    except ValueError:
        pass
    try:
        return _metres(zlib.decompress(data, -zlib.MAX_WBITS))
    except (zlib.error, ValueError) as error:
        raise ValueError(f"{path}: frame {number} is neither LZ4 nor deflate of {WIDTH} x {HEIGHT}: {error}") from error


def _metres(raw: bytes) -> npt.NDArray[np.float32]:
    return np.frombuffer(raw, "<f4").reshape(HEIGHT, WIDTH).astype(np.float32)


def lz4_block(data: bytes, size: int) -> bytes:
    """`size` bytes from an LZ4 block. Raises ValueError unless it is a block of exactly that size."""
    out = bytearray()
    at = 0
    try:
        while True:
            token = data[at]
            length, at = _extended(data, at + 1, token >> 4)
            if at + length > len(data):
                raise ValueError("literals beyond the end")
            out += data[at : at + length]
            at += length
            if at == len(data):
                break
            back = data[at] | data[at + 1] << 8
            length, at = _extended(data, at + 2, token & 15)
            length += 4
            start = len(out) - back
            if not back or start < 0 or len(out) + length > size:
                raise ValueError("a match outside the block")
            # A match may overlap what it writes: its first `back` bytes are then repeated.
            piece = out[start : start + min(back, length)]
            out += (piece * (length // len(piece) + 1))[:length]
    except IndexError as error:
        raise ValueError("it ends within a sequence") from error
    if len(out) != size:
        raise ValueError(f"expected {size} bytes, got {len(out)}")
    return bytes(out)


def _extended(data: bytes, at: int, length: int) -> tuple[int, int]:
    """(length, next place): 15 says that bytes to be added follow, up to one that is not 255."""
    if length == 15:
        while True:
            length += data[at]
            at += 1
            if data[at - 1] != 255:
                break
    return length, at
