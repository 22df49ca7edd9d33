"""Which temporal units of an AV1 stream no other needs: those whose frames are shown and refresh no reference.

Nothing but references carries state from frame to frame in AV1 (motion, probabilities and segments are those of a reference), so
such a unit can be left out without harm to the rest; encoders make about every second one of them. That is told by the first
bits of a frame header, whose places depend on the sequence header. Of streams with decoder models (rare) none is known to be
free. Source: AV1 Bitstream & Decoding Process Specification, version 1.0.0 with errata 1, 5.3 to 5.5 and 5.9.2.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6
_KEY_FRAME, _INTRA_ONLY, _SWITCH_FRAME = 0, 2, 3
_SELECT = 2
"""A tool that each frame chooses by a bit of its own."""
_READ_BYTES = 128
"""More than the part of a header that is read may have."""


@dataclass(frozen=True, slots=True)
class _Sequence:
    screen_content_tools: int
    integer_motion: int
    frame_id_bits: int
    order_hint_bits: int


class Av1Units:
    """Goes through the temporal units of a stream in decode order.

    Args:
        extradata: of the stream (av1C), or None; a sequence header in a unit takes its place.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self._sequence: _Sequence | None = None
        if extradata and len(extradata) > 4 and extradata[0] == 0x81:
            self.is_free(extradata[4:])

    def is_free(self, unit: Any) -> bool:
        """Whether no other unit needs this one. False where it cannot be told."""
        free = []
        try:
            for kind, payload in _units(memoryview(unit)):
                if kind == _SEQUENCE_HEADER:
                    self._sequence = _read_sequence(_Bits(payload))
                elif kind in (_FRAME_HEADER, _FRAME):
                    free.append(self._sequence is not None and _refreshes_nothing(_Bits(payload), self._sequence))
        except EOFError:
            return False
        return bool(free) and all(free)


class _Bits:
    def __init__(self, data: memoryview) -> None:
        head = bytes(data[:_READ_BYTES])
        self._value, self._left = int.from_bytes(head, "big"), 8 * len(head)

    def take(self, count: int = 1) -> int:
        if count > self._left:
            raise EOFError
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)

    def take_uvlc(self) -> int:
        zeros = 0
        while not self.take():
            zeros += 1
        return self.take(zeros) + (1 << zeros) - 1 if zeros < 32 else (1 << 32) - 1


def _units(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(type, payload) of each open bitstream unit."""
    at = 0
    while at < len(data):
        head = data[at]
        at += 2 if head & 4 else 1
        size = len(data) - at
        if head & 2:
            size, at = _leb128(data, at)
        if at + size > len(data):
            raise EOFError
        yield head >> 3 & 15, data[at : at + size]
        at += size


def _leb128(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        if at + i >= len(data):
            break
        value |= (data[at + i] & 127) << 7 * i
        if not data[at + i] & 128:
            return value, at + i + 1
    raise EOFError


def _read_sequence(bits: _Bits) -> _Sequence | None:
    """None: of a kind whose frames are not looked into."""
    bits.take(3 + 1)  # profile, still_picture
    if bits.take():  # reduced_still_picture_header
        return None
    if not _skip_operating_points(bits):
        return None
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    bits.take(width_bits + height_bits)
    frame_id_bits = 0
    if bits.take():  # frame_id_numbers_present_flag
        frame_id_bits = bits.take(4) + 2
        frame_id_bits += bits.take(3) + 1
    bits.take(3 + 4)  # superblocks, filters; compound, warped motion, dual filter
    order_hint = bits.take()
    bits.take(2 * order_hint)
    screen_content_tools = _SELECT if bits.take() else bits.take()
    integer_motion = _SELECT
    if screen_content_tools:
        integer_motion = _SELECT if bits.take() else bits.take()
    order_hint_bits = bits.take(3) + 1 if order_hint else 0
    return _Sequence(screen_content_tools, integer_motion, frame_id_bits, order_hint_bits)


def _skip_operating_points(bits: _Bits) -> bool:
    """False: there is a decoder model."""
    if bits.take():  # timing_info_present_flag
        bits.take(32 + 32)
        if bits.take():  # equal_picture_interval
            bits.take_uvlc()
        if bits.take():  # decoder_model_info_present_flag
            return False
    delays = bits.take()
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take()
        if delays and bits.take():
            bits.take(4)
    return True


def _refreshes_nothing(bits: _Bits, sequence: _Sequence) -> bool:
    if bits.take():  # show_existing_frame
        return False
    kind, shown = bits.take(2), bits.take()
    if not shown or kind in (_KEY_FRAME, _SWITCH_FRAME):
        return False
    resilient = bits.take()
    bits.take()  # disable_cdf_update
    tools = sequence.screen_content_tools
    if tools == _SELECT:
        tools = bits.take()
    if tools and sequence.integer_motion == _SELECT:
        bits.take()
    bits.take(sequence.frame_id_bits + 1 + sequence.order_hint_bits)  # with frame_size_override_flag
    if kind != _INTRA_ONLY and not resilient:
        bits.take(3)  # primary_ref_frame
    return bits.take(8) == 0  # refresh_frame_flags
