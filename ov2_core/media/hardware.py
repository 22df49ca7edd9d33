"""Decoders on a device: NVIDIA's (NVDEC) through FFmpeg's CUDA, by PyAV. Frames come back to the CPU as NV12 or P010.

The standards prescribe every bit of a decoded frame, so shards made either way should show the same pictures; codec and profile
that the device does not know are decoded in software. It exports no motion vectors and keeps its loop filters.
"""

from functools import cache
from typing import Any

import av.error
from av.codec import Codec
from av.codec.hwaccel import HWAccel, hwdevices_available

from ov2_core.config import Decoder


def accelerator(decoder: Decoder) -> Any | None:
    """What av.open takes as hwaccel; None for software."""
    return None if decoder == "software" else HWAccel(decoder, allow_software_fallback=True)


@cache
def require_decoder(decoder: Decoder) -> None:
    """Finds out once a process whether a decoder can be had.

    Raises:
        ValueError: it cannot, and why.
    """
    if decoder == "software":
        return
    if decoder not in hwdevices_available():
        raise ValueError(f'decoder "{decoder}": this PyAV is built without it; take tokenizer.decoder=software')
    try:
        HWAccel(decoder, allow_software_fallback=False).create(Codec("h264", "r"))
    except (av.error.FFmpegError, RuntimeError, ValueError) as error:
        raise ValueError(
            f'decoder "{decoder}": no such device can be opened here ({error}); give the workers a GPU with its driver '
            "(the container needs NVIDIA_DRIVER_CAPABILITIES with video), or take tokenizer.decoder=software"
        ) from None
