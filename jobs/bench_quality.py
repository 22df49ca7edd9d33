"""The quality half of the tokenizer benchmark: what each selection tells of a clip, and what JPEG makes of it.

Enters: a clip, its known events if any, budgets, output folders of codec-video-prep. Leaves: one case a policy and budget:
PSNR and SSIM of the held evidence, event recall (ov2_core/evals/evidence.py), bytes a token by JPEG quality. Design: one
decoding a size scores all selections of a clip; our uniform frames are asked for as many images as the codec canvases have.
"""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from jobs.bench_measure import RECIPES, config_of, encode_jpegs
from ov2_core.evals.clips import ClipTruth
from ov2_core.evals.evidence import (
    BlockEvidence,
    HoldMeter,
    evidence_of,
    luma_of,
    read_codec_video_prep,
    score_events,
    with_source_pixels,
)
from ov2_core.media.decode import DecodeStats, decode_frames
from ov2_core.media.probe import VideoProbe, probe_video
from ov2_core.media.scale import Scaler
from ov2_core.tokenize_video import tokenize_video
from ov2_core.tokenized import TokenizedVideo

JPEG_KINDS = ("saliency", "evidence", "uniform")
JPEG_SETTINGS = ((75, "4:2:0"), (85, "4:2:0"), (90, "4:2:0"), (95, "4:2:0"), (95, "4:4:4"))


def source_frames(
    path: Path, probe: VideoProbe, *, width_px: int, height_px: int
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """(t, RGB at canvas size) of every frame, scaled as the tokenizer scales."""
    scaler = Scaler(width_px=width_px, height_px=height_px, rotation_degrees=probe.rotation_degrees)
    for index, frame in decode_frames(str(path), probe, stats=DecodeStats()):
        yield int(probe.timeline.ticks_T[index]), scaler.rgb(scaler.scaled(frame))


def tokenize_all(path: Path, budget: int) -> dict[str, TokenizedVideo]:
    """All kinds; uniform frames at the same number of images."""
    videos = {kind: tokenize_video(str(path), config_of(kind, budget)) for kind in RECIPES if kind != "uniform"}
    videos["uniform"] = tokenize_video(str(path), config_of("uniform", len(videos["saliency"].images_NHW3)))
    return videos


def score_clip(
    path: Path, *, truth: ClipTruth | None, budgets: list[int], peer_folders: Mapping[int, Path]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All cases of a clip.

    Args:
        truth: of a generated clip; real clips have no known events.
        peer_folders: output of codec-video-prep by budget, where it gave any.

    Returns:
        (cases, JPEG rows): the JPEG rows are of the largest budget.
    """
    probe = probe_video(str(path))
    chosen: dict[tuple[int, str], BlockEvidence] = {}
    jpeg_rows: list[dict[str, Any]] = []
    for budget in budgets:
        videos = tokenize_all(path, budget)
        chosen |= {(budget, kind): evidence_of(video) for kind, video in videos.items()}
        if budget == max(budgets):
            jpeg_rows = [row for kind in JPEG_KINDS for row in jpeg_cost(kind, videos[kind])]
    for budget, folder in peer_folders.items():
        delivered = read_codec_video_prep(folder, ticks_T=probe.timeline.ticks_T)
        size = {"width_px": delivered.num_columns * 28, "height_px": delivered.num_rows * 28}
        chosen[budget, "peer"] = with_source_pixels(delivered, source_frames(path, probe, **size))
        chosen[budget, "peer as delivered"] = delivered
    meters = {key: HoldMeter(evidence) for key, evidence in chosen.items()}
    sizes = {(e.num_rows, e.num_columns) for e in chosen.values()}
    for rows, columns in sizes:
        same = [meters[k] for k, e in chosen.items() if (e.num_rows, e.num_columns) == (rows, columns)]
        for t, frame in source_frames(path, probe, width_px=columns * 28, height_px=rows * 28):
            luma = luma_of(frame)
            for meter in same:
                meter.add(t, frame, luma=luma)
    cases = [_case(key, chosen[key], meters[key], truth, probe) for key in sorted(chosen)]
    return cases, jpeg_rows


def _case(
    key: tuple[int, str], evidence: BlockEvidence, meter: HoldMeter, truth: ClipTruth | None, probe: VideoProbe
) -> dict[str, Any]:
    score = meter.score()
    case: dict[str, Any] = {
        "budget": key[0],
        "policy": key[1],
        "tokens": evidence.num_tokens,
        "padding_tokens": evidence.num_padding,
        "canvas_width_px": evidence.num_columns * evidence.block_px,
        "canvas_height_px": evidence.num_rows * evidence.block_px,
        "psnr_db": score.psnr_db if np.isfinite(score.psnr_db) else None,
        "ssim": score.ssim,
        "share_unseen": score.share_unseen,
        "event_recall": None,
        "strict_recall": None,
        "num_events": 0,
    }
    if truth is not None and truth.event_frames:
        events = score_events(
            evidence,
            fps=probe.fps,
            event_seconds=truth.event_seconds,
            event_boxes_xyxy_px=truth.event_boxes_xyxy_px,
            source_width_px=truth.width_px,
            source_height_px=truth.height_px,
        )
        case |= {
            "event_recall": events.recall,
            "strict_recall": events.strict_recall,
            "num_events": events.num_events,
        }
    return case


def jpeg_cost(kind: str, video: TokenizedVideo) -> list[dict[str, Any]]:
    """Bytes a token and PSNR of the JPEG round trip, by setting."""
    rows = []
    for quality, subsampling in JPEG_SETTINGS:
        files = encode_jpegs(video.images_NHW3, quality=quality, subsampling=subsampling)
        squared = 0.0
        for image, data in zip(video.images_NHW3, files, strict=True):
            with Image.open(io.BytesIO(data)) as decoded:
                squared += float(np.square(np.subtract(image, np.asarray(decoded), dtype=np.float64)).mean())
        error = squared / len(files)
        rows.append(
            {
                "policy": kind,
                "quality": quality,
                "subsampling": subsampling,
                "bytes": sum(map(len, files)),
                "tokens": video.num_tokens,
                "bytes_per_token": sum(map(len, files)) / video.num_tokens,
                "psnr_db": float(10 * np.log10(255**2 / error)) if error else None,
            }
        )
    return rows
