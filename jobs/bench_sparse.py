"""`ov2 bench tokenizer --sparse`: what a long video costs against decoding it whole, and the memory it takes.

Enters: a length. Leaves: a row a way of tokenizing: CPU seconds, their ratio to a plain decode, peak memory. Design: the video is
a drawn clip whose packets are written again and again with later time stamps (one encoding, any length; a keyframe at least
every 250 frames, x264's default); every cost is measured in a fresh process, as in jobs/bench_tokenizer.py.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av

from jobs.bench_tokenizer import WARMUP_SECONDS, load_average, machine_facts, run_child, version_facts
from ov2_core.evals.clips import write_rope_clip

CLIP_SECONDS = 30.0
GOP_FRAMES = 250
"""Between keyframes at most: the default of x264 and of many cameras' transcodes."""
WAYS: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("uniform", {}),
    ("uniform", {"tokenizer.keyframe_reach": "0"}),
    ("uniform", {"tokenizer.keyframe_reach": "0.45"}),
    ("saliency", {}),
    ("evidence", {}),
)


def write_long_clip(path: Path, *, minutes: float, seed: int = 0) -> int:
    """A rope clip of 30 s, panning, 960x540 at 30 fps in H.264, repeated packet by packet. Returns the number of frames."""
    short = path.with_name(f"{path.stem}-short.mp4")
    write_rope_clip(
        short, seed=seed, seconds=CLIP_SECONDS, width_px=960, height_px=540, camera="panning", gop_frames=GOP_FRAMES
    )
    repeats = max(1, round(minutes * 60 / CLIP_SECONDS))
    frames = 0
    with av.open(str(short)) as source, av.open(str(path), "w") as out:
        stream = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.size]
        copied = out.add_stream_from_template(stream)
        ticks = round(CLIP_SECONDS / float(stream.time_base))
        data = [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe) for p in packets]
        for turn in range(repeats):
            for payload, pts, dts, duration, is_key in data:
                packet = av.Packet(payload)
                packet.stream, packet.time_base = copied, stream.time_base
                packet.pts, packet.dts, packet.is_keyframe = pts + turn * ticks, dts + turn * ticks, is_key
                packet.duration = duration
                out.mux(packet)
                frames += 1
    short.unlink()
    return frames


def run_sparse_benchmark(*, minutes: float, images: int, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Everything that the command reports, as plain JSON types.

    Raises:
        ValueError: a length or a number of images that makes no sense.
    """
    if minutes <= 0 or images < 4:
        raise ValueError(f"expected minutes > 0 and at least 4 images, got {minutes} and {images}")
    report: dict[str, Any] = {
        "machine": machine_facts(),
        "versions": version_facts(),
        "minutes": minutes,
        "images": images,
        "load_average_before": load_average(),
        "ways": [],
    }
    with tempfile.TemporaryDirectory(prefix="ov2-sparse-") as work:
        folder = Path(work)
        warmup, long = folder / "warmup.mp4", folder / "long.mp4"
        write_rope_clip(warmup, seed=1000, seconds=WARMUP_SECONDS)
        report["frames"] = write_long_clip(long, minutes=minutes)
        for kind, overrides in (("decode", {}), *WAYS):
            measured = run_child(kind, images if kind != "decode" else 0, long, [warmup], folder, overrides)
            report["ways"].append({"kind": kind, "set": dict(overrides), **measured})
            say(
                f"{kind} {dict(overrides)}: {measured.get('error') or format(measured['cpu_seconds'], '.1f') + ' CPU s'}"
            )
    report["load_average_after"] = load_average()
    return report


def sparse_lines(report: Mapping[str, Any]) -> list[str]:
    """The report as a Markdown table."""
    decode = next(way for way in report["ways"] if way["kind"] == "decode")
    lines = [
        f"{report['minutes']:g} minutes, {report['frames']} frames of 960x540 H.264, {report['images']} images; measured "
        f"{report['machine']['date']} on {report['machine']['cpu']}, load average {report['load_average_before'][0]} before, "
        f"{report['load_average_after'][0]} after; commit {report['versions']['commit']}.",
        "",
        "| way | set | images | CPU s | of a decode | peak MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for way in report["ways"]:
        chosen = ", ".join(f"{key}={value}" for key, value in way["set"].items())
        if "error" in way:
            lines.append(f"| {way['kind']} | {chosen} | - | {way['error']} | - | - |")
            continue
        share = way["cpu_seconds"] / decode["cpu_seconds"] if "cpu_seconds" in decode else float("nan")
        lines.append(
            f"| {way['kind']} | {chosen} | {way.get('images', '-')} | {way['cpu_seconds']:.1f} | {share:.2f} "
            f"| {way['peak_rss_bytes'] / 2**20:.0f} |"
        )
    return lines
