"""Stills: the raster formats that Pillow decodes itself, upright by EXIF, as RGB on a white ground.

EPS is not among them: Pillow hands it to Ghostscript, another program that runs what it reads.
"""

import contextlib
import io
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ov2_core.errors import BadItemError
from ov2_core.media.container import Source
from ov2_core.storage.local_file import LocalFile
from ov2_core.storage.retry import is_transient
from schemas.video import ProbeRecord

IMAGE_FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "ICO", "PCX", "PPM", "QOI", "SGI", "TGA", "DDS",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class StillImage:
    """A decoded still."""

    image: Image.Image
    codec: str
    flags: tuple[str, ...]

    @property
    def width(self) -> int:
        """Pixels, upright."""
        return self.image.width

    @property
    def height(self) -> int:
        """Pixels, upright."""
        return self.image.height

    def resized(self, width_px: int, height_px: int) -> npt.NDArray[np.uint8]:
        """[height, width, 3] uint8 RGB, area-averaged when smaller (box filter), bicubic when larger."""
        if (width_px, height_px) == self.image.size:
            return np.asarray(self.image)
        smaller = width_px <= self.width and height_px <= self.height
        resampling = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
        return np.asarray(self.image.resize((width_px, height_px), resampling))


def load_image(source: Source, *, max_source_px: int) -> StillImage:
    """Decode a still; of an animation, the first frame.

    Raises:
        BadItemError: source_missing, source_empty, not_media (unreadable or cut off) or too_large.
        OSError: the machine or the storage cannot read it now.
    """
    try:
        with warnings.catch_warnings(), _file(source) as file:
            warnings.simplefilter("ignore")  # of large pictures, and of odd tags in files that are odd
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                codec = (image.format or "unknown").lower()
                if image.width * image.height > max_source_px:
                    raise BadItemError(
                        "too_large",
                        f"{image.width} x {image.height} px exceeds max_source_px ({max_source_px}); raise it or drop the row",
                    )
                flags = ("first_of_animation",) if getattr(image, "n_frames", 1) > 1 else ()
                return StillImage(upright_rgb(image).image, codec, flags)
    except FileNotFoundError:
        raise BadItemError("source_missing", f"no such file: {source}; check the manifest's path") from None
    except UnidentifiedImageError:  # its own text names the address of a buffer, another one each time
        raise BadItemError(
            "not_media", "none of the image formats read here begins like this; is it complete?"
        ) from None
    except Image.DecompressionBombError as error:  # Pillow's own limit, of twice Image.MAX_IMAGE_PIXELS
        raise BadItemError("too_large", f"{error}; drop the row") from None
    except (SyntaxError, ValueError) as error:
        if isinstance(error, BadItemError):
            raise
        raise BadItemError("not_media", f"Pillow reads no image from it ({error}); is it complete?") from None
    except OSError as error:
        if is_transient(error):
            raise
        raise BadItemError("not_media", f"the image is damaged or cut off ({error})") from None


def _file(source: Source) -> contextlib.AbstractContextManager[Any]:
    if isinstance(source, (str, os.PathLike)):
        return io.BufferedReader(LocalFile(source))
    return contextlib.nullcontext(source)


def upright_rgb(image: Image.Image) -> StillImage:
    """An open image upright by its EXIF, as RGB on a white ground."""
    upright = ImageOps.exif_transpose(image)
    assert upright is not None
    return StillImage(_to_rgb(upright), (image.format or "unknown").lower(), ())


def probe_image(source: Source, *, max_source_px: int = 8192 * 8192, size_bytes: int = 0) -> ProbeRecord:
    """What a plan stores of a still. Decodes it, for a cut-off image shows only then.

    Raises:
        BadItemError: as load_image.
    """
    image = load_image(source, max_source_px=max_source_px)
    return ProbeRecord(
        media="image",
        container=image.codec,
        codec=image.codec,
        pixel_format="rgb24",
        width_px=image.width,
        height_px=image.height,
        num_frames=1,
        duration_seconds=0.0,
        fps=None,
        variable_rate=False,
        rotation_degrees=0,
        size_bytes=size_bytes,
        video_bytes=size_bytes,
        flags=list(image.flags),
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):  # 16-bit gray: Pillow would clip, not scale
        return Image.fromarray((np.asarray(image).astype(np.float32) / 257).clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        ground = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(ground, rgba).convert("RGB")
    return image.convert("RGB")
