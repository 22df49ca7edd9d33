"""`python -m jobs.figure_normalisation OUT.png`: what policy saliency shows with scores normalised by frame and by group.

Enters: nothing. Leaves: the figure of docs/tokenizer.md. Design: a drawn clip, both settings, and the frames in which their choices
differ most; blocks that are not shown are dimmed. Nothing is filmed, so anyone can draw it again.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from jobs.bench_quality import source_frames
from ov2_core.config import TokenizerConfig, recipe
from ov2_core.evals.clips import write_clip
from ov2_core.evals.varied_clips import varied_clip
from ov2_core.media.probe import probe_video
from ov2_core.tokenize_video import tokenize_video

NORMALISATIONS = ("frame", "clip")
NUM_FRAMES = 3
BLOCK_PX = 28
DIMMED = 0.25
MARGIN_PX, TEXT_PX = 6, 22


def blocks_by_time(path: str, config: TokenizerConfig) -> dict[int, set[tuple[int, int]]]:
    """{t: blocks (row, column) shown of that frame}, frames shown whole left out."""
    video = tokenize_video(path, config)
    whole = video.images_NHW3.shape[1] * video.images_NHW3.shape[2] // BLOCK_PX**2
    shown: dict[int, set[tuple[int, int]]] = {}
    for t, h, w in np.unique(video.positions_NP3.reshape(-1, 3) // (1, 2, 2), axis=0).tolist():
        shown.setdefault(t, set()).add((h, w))
    return {t: blocks for t, blocks in shown.items() if len(blocks) < whole}


def dimmed(frame_HW3: npt.NDArray[np.uint8], blocks: set[tuple[int, int]]) -> Image.Image:
    """The frame with all other blocks dimmed."""
    light = np.full((frame_HW3.shape[0] // BLOCK_PX, frame_HW3.shape[1] // BLOCK_PX), DIMMED)
    for row, column in blocks:
        light[row, column] = 1.0
    full = light.repeat(BLOCK_PX, axis=0).repeat(BLOCK_PX, axis=1)[:, :, None]
    return Image.fromarray((frame_HW3 * full).astype(np.uint8))


def draw(out: Path, *, seed: int = 3) -> None:
    """Writes the figure."""
    base = recipe("codec-16").tokenizer
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "sport.mp4")
        _, frames = varied_clip("sport", seed=seed, seconds=8, fps=30, width_px=640, height_px=360)
        write_clip(path, frames, fps=30)
        chosen = [
            blocks_by_time(path, replace(base, score=replace(base.score, normalisation=name)))
            for name in NORMALISATIONS
        ]
        times = sorted(set(chosen[0]) & set(chosen[1]))
        times = sorted(sorted(times, key=lambda t: (-len(chosen[0][t] ^ chosen[1][t]), t))[:NUM_FRAMES])
        probe = probe_video(path)
        width_px, height_px = 616, 336
        source = {
            t: f for t, f in source_frames(Path(path), probe, width_px=width_px, height_px=height_px) if t in times
        }
    across = len(NORMALISATIONS) + 1
    sheet = Image.new(
        "RGB",
        (across * (width_px + MARGIN_PX), TEXT_PX + len(times) * (height_px + MARGIN_PX)),
        (255, 255, 255),
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_PX - 6)
    for column, title in enumerate(("source", "normalisation=frame", "normalisation=clip")):
        pen.text((column * (width_px + MARGIN_PX), 2), title, fill=(0, 0, 0), font=font)
    for row, t in enumerate(times):
        pictures = [Image.fromarray(source[t]), *(dimmed(source[t], c[t]) for c in chosen)]
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (column * (width_px + MARGIN_PX), TEXT_PX + row * (height_px + MARGIN_PX)))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.resize((sheet.width // 2, sheet.height // 2), Image.Resampling.LANCZOS).save(out, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    draw(parser.parse_args().out)
