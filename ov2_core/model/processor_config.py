"""What a processor must share with its model, and the files of a model's folder that say it.

Read: processor_config.json (ours), preprocessor_config.json (released) and config.json (the model's), which must agree. Written:
the first two.
"""

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from ov2_core.model.chatml import DEFAULT_SYSTEM
from ov2_core.model.patches import PIXEL_MEAN, PIXEL_STD

PROCESSOR_FILE, PREPROCESSOR_FILE, MODEL_FILE = "processor_config.json", "preprocessor_config.json", "config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessorConfig:
    """What the processor must share with the model."""

    patch_px: int = 14
    merge: int = 2
    window_images: int = 4
    """The model's frame_windows_size; 0: a grid row is one group."""
    pixel_mean: tuple[float, ...] = PIXEL_MEAN
    pixel_std: tuple[float, ...] = PIXEL_STD
    default_system: str = DEFAULT_SYSTEM

    def __post_init__(self) -> None:
        if min(self.patch_px, self.merge) < 1:
            raise ValueError(f"patch_px and merge must be >= 1, got {self}")
        if len(self.pixel_mean) != 3 or len(self.pixel_std) != 3 or min(self.pixel_std) <= 0:
            raise ValueError(
                f"pixel_mean and pixel_std have 3 values, std > 0, got {self.pixel_mean}, {self.pixel_std}"
            )

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Self:
        """From a model's folder, its tokenizer not needed. Raises ValueError for files that contradict each other."""
        return cls(**_read_fields(Path(folder)))

    def save_pretrained(self, folder: str | os.PathLike[str], *, processor_class: str) -> None:
        """processor_config.json, and the preprocessor_config.json that the released code's image processor reads.

        Args:
            folder: is there.
        """
        root = Path(folder)
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        _write_json(root / PROCESSOR_FILE, {"processor_class": processor_class, **own})
        released = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "patch_size": self.patch_px,
            "temporal_patch_size": 1,
            "merge_size": self.merge,
            "image_mean": self.pixel_mean,
            "image_std": self.pixel_std,
        }
        _write_json(root / PREPROCESSOR_FILE, released)


def _read_fields(root: Path) -> dict[str, Any]:
    own = _read_json(root / PROCESSOR_FILE)
    released = _read_json(root / PREPROCESSOR_FILE)
    vision = _read_json(root / MODEL_FILE).get("vision_config", {})
    found: dict[str, Any] = {}
    sources = (
        (
            MODEL_FILE,
            vision,
            {"patch_px": "patch_size", "merge": "spatial_merge_size", "window_images": "frame_windows_size"},
        ),
        (
            PREPROCESSOR_FILE,
            released,
            {"patch_px": "patch_size", "merge": "merge_size", "pixel_mean": "image_mean", "pixel_std": "image_std"},
        ),
        (PROCESSOR_FILE, own, {f.name: f.name for f in fields(ProcessorConfig)}),
    )
    for name, values, names in sources:
        for ours, theirs in names.items():
            if theirs not in values:
                continue
            value = tuple(values[theirs]) if isinstance(values[theirs], list) else values[theirs]
            if found.get(ours, value) != value:
                raise ValueError(
                    f"{root / name}: {theirs} is {value}, but {found[ours]} elsewhere in the folder; make them agree"
                )
            found[ours] = value
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(loaded).__name__}")
    return loaded


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")
