"""`ov2 bench tokenizer --stream`: how much of what a whole-clip tokenization tells is left when groups are cut as frames come.

Enters: clips, budgets. Leaves: per clip, budget and policy the held PSNR, SSIM and event recall of the stream, of the offline
tokenization and of uniform frames, the delay of emission and the frames held. Design: a stream runs at budget / duration; how many
canvases come of it the account decides, so uniform frames are as many and offline's groups as many as come nearest, with uniform
frames of its own. The gain kept is (stream - uniform) / (offline - uniform).
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench_measure import config_of
from jobs.bench_quality import source_frames
from ov2_core.config import StreamConfig
from ov2_core.evals.clips import ClipTruth
from ov2_core.evals.evidence import BlockEvidence, HoldMeter, evidence_of, luma_of, score_events
from ov2_core.media.probe import VideoProbe, probe_video
from ov2_core.tokenize_stream import StreamGroup, StreamStats, join_groups, tokenize_stream
from ov2_core.tokenize_video import tokenize_video

POLICIES = ("saliency", "evidence")


def bench_stream_clip(path: Path, *, truth: ClipTruth | None, budgets: Iterable[int]) -> list[dict[str, Any]]:
    """All cases of one clip.

    Raises:
        BadItemError: the clip cannot be tokenized.
    """
    probe = probe_video(str(path))
    chosen: dict[tuple[int, str, str], BlockEvidence] = {}
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for budget in budgets:
        for policy in POLICIES:
            groups, stats = _streamed(path, policy, budget, probe)
            images = sum(len(g.images_NHW3) for g in groups)
            per_group = config_of(policy, budget).groups.canvases_per_group
            rounded = max(1, (images + per_group // 2) // per_group) * per_group
            streamed = evidence_of(join_groups(groups))
            ticks = np.rint(streamed.t_E / groups[0].fps * probe.fps).astype(np.int64)
            chosen[budget, policy, "stream"] = replace(streamed, t_E=ticks)
            offline = tokenize_video(str(path), config_of(policy, rounded))
            chosen[budget, policy, "offline"] = evidence_of(offline)
            for name, count in (("uniform", images), ("uniform of offline", len(offline.images_NHW3))):
                chosen[budget, policy, name] = evidence_of(tokenize_video(str(path), config_of("uniform", count)))
            rows[budget, policy] = {
                "budget": budget,
                "policy": policy,
                "images": images,
                "offline_images": len(offline.images_NHW3),
                "groups": len(groups),
                "max_delay_seconds": max(g.emitted_seconds - g.end_seconds for g in groups),
                "max_group_seconds": max(g.end_seconds - g.start_seconds for g in groups),
                "max_held_frames": stats.max_held_frames,
            }
    meters = {key: HoldMeter(evidence) for key, evidence in chosen.items()}
    size = next(iter(chosen.values()))
    frames = source_frames(
        path, probe, width_px=size.num_columns * size.block_px, height_px=size.num_rows * size.block_px
    )
    for t, frame in frames:
        luma = luma_of(frame)
        for meter in meters.values():
            meter.add(t, frame, luma=luma)
    for (budget, policy, name), meter in meters.items():
        score = meter.score()
        row = rows[budget, policy]
        row[name] = {"psnr_db": score.psnr_db if np.isfinite(score.psnr_db) else None, "ssim": score.ssim}
        if truth is not None and truth.event_frames:
            events = score_events(
                chosen[budget, policy, name],
                fps=probe.fps,
                event_seconds=truth.event_seconds,
                event_boxes_xyxy_px=truth.event_boxes_xyxy_px,
                source_width_px=truth.width_px,
                source_height_px=truth.height_px,
            )
            row[name] |= {"event_recall": events.recall, "strict_recall": events.strict_recall}
    return list(rows.values())


def share_kept(cases: Iterable[dict[str, Any]]) -> float | None:
    """Sum of the stream's gains over uniform frames / sum of the offline gains; None where offline gains nothing."""
    kept = of = 0.0
    for case in cases:
        values = [case[n]["psnr_db"] for n in ("stream", "uniform", "offline", "uniform of offline")]
        if None not in values:
            kept += values[0] - values[1]
            of += values[2] - values[3]
    return kept / of if of > 0 else None


def stream_lines(clips: Iterable[dict[str, Any]]) -> list[str]:
    """The report as a Markdown table, and what is kept over all clips."""
    clips = list(clips)
    lines = [
        "| clip | budget | policy | canvases | uniform dB | offline | stream | SSIM offline | stream | events offline | stream | "
        "delay s | held frames |",
        "| --- |" + " ---: |" * 12,
    ]
    for clip in clips:
        if "error" in clip:
            lines.append(f"| {clip['name']} | {clip['error']} |" + " |" * 11)
        for case in clip["stream"]:
            offline, stream = case["offline"], case["stream"]
            cells = (
                clip["name"], str(case["budget"]), case["policy"], f"{case['images']} ({case['offline_images']})",
                _number(case["uniform"]["psnr_db"], 2), _number(offline["psnr_db"], 2), _number(stream["psnr_db"], 2),
                _number(offline["ssim"], 3), _number(stream["ssim"], 3),
                _number(offline.get("event_recall"), 2), _number(stream.get("event_recall"), 2),
                _number(case["max_delay_seconds"], 2), str(case["max_held_frames"]),
            )  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    for policy in POLICIES:
        cases = [c for clip in clips for c in clip["stream"] if c["policy"] == policy]
        kept = share_kept(cases)
        said = (
            "offline gains nothing over uniform frames" if kept is None else f"{kept:.0%} of the offline gain is kept"
        )
        lines += ["", f"{policy}: {said} ({len(cases)} cases)."]
    return lines


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _streamed(path: Path, policy: str, budget: int, probe: VideoProbe) -> tuple[list[StreamGroup], StreamStats]:
    stats = StreamStats()
    rate = StreamConfig(canvases_per_minute=budget * 60.0 / probe.duration_seconds)
    return list(tokenize_stream(str(path), config_of(policy, budget), rate, stats=stats)), stats
