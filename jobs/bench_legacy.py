"""Whether the recipe authors-legacy shows the same places as codec-video-prep 0.2.5, clip by clip.

Enters: clips (six generated ones by default), budgets, a Python that has the tool with its own dependencies (jobs/bench_peer.py).
Leaves: a line a clip and budget. What is compared: the source place (t, h, w) of every patch, where the tool does not pad.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.bench_peer import find_peer, peer_settings, run_peer
from ov2_core.config import LegacyGrouping, recipe
from ov2_core.errors import BadItemError
from ov2_core.evals.clips import Camera, rope_clip, write_clip, write_rope_clip
from ov2_core.media.bit_cost import bit_cost_reader
from ov2_core.media.probe import probe_video
from ov2_core.tokenize_video import tokenize_video
from ov2_core.tokenizer.legacy import GROUP_FRAMES, MIN_READY_FRAMES


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Of one clip at one budget."""

    clip: str
    codec: str
    canvases: int = 0
    num_places: int = 0
    """Patches that the tool does not pad."""
    num_same: int = 0
    num_padded: int = 0
    """Patches that it pads."""
    reason: str | None = None
    """Why there is nothing to compare."""

    @property
    def identical(self) -> bool:
        """Every place is the same."""
        return self.reason is None and self.num_same == self.num_places

    def line(self) -> str:
        """For people."""
        if self.reason:
            return f"{self.clip} ({self.codec}): not compared: {self.reason}"
        said = "identical" if self.identical else f"DIFFERENT, {self.num_same:,} the same"
        padded = f"; {self.num_padded:,} more are padding there, blocks here" if self.num_padded else ""
        return f"{self.clip} ({self.codec}), {self.canvases} canvases: {self.num_places:,} places, {said}{padded}"


def compare_clip(
    path: Path, *, budget: int, python: str, folder: Path, grouping: LegacyGrouping = "fixed"
) -> Agreement:
    """Run both on one clip. The tool writes into `folder`.

    Raises:
        ValueError: codec-video-prep is not installed here.
        BadItemError: the clip holds no video.
    """
    probe = probe_video(str(path))
    clip, codec = path.name, probe.codec
    if probe.rotation_degrees:
        return Agreement(clip=clip, codec=codec, reason="it is shown turned, which the tool leaves out")
    try:
        config = replace(recipe(f"authors-legacy-{budget}").tokenizer, legacy_grouping=grouping)
        video = tokenize_video(str(path), config)
    except BadItemError as error:
        return Agreement(clip=clip, codec=codec, reason=str(error))
    if probe.num_frames < 4:
        return Agreement(clip=clip, codec=codec, reason="the tool shows nothing of fewer than 4 frames")
    settings = peer_settings(images=4 * min(budget // 4, probe.num_frames // 4), num_frames=probe.num_frames)
    if grouping == "readiness":
        samples = min(probe.num_frames, MIN_READY_FRAMES * (budget // 4))
        settings |= {"grouping_mode": grouping, "num_sampled_frames": samples, "group_size": GROUP_FRAMES}
    peer = {"error": ""}
    for backend in ("cv_reader_pixels", "ffmpeg_native"):  # at some sizes the first breaks the tool's memory
        peer = run_peer(
            python,
            video=path,
            images=len(video.images_NHW3),
            num_frames=probe.num_frames,
            coded_size_px=(probe.coded_width_px, probe.coded_height_px),
            warmups=(),
            warmup_frames=probe.num_frames,
            out=folder,
            settings=settings | {"decode_backend": backend},
        )
        if "error" not in peer:
            break
    if "error" in peer:
        return Agreement(clip=clip, codec=codec, reason=f"the tool fails: {peer['error']}")
    counted = json.loads((folder / "meta.json").read_text())["total_frames"]
    if counted != probe.num_frames:
        message = f"by its header the tool counts {counted} frames, it shows {probe.num_frames}"
        return Agreement(clip=clip, codec=codec, reason=message)
    theirs = np.load(folder / "src_patch_position.npy", allow_pickle=False)
    num_places, num_same = same_places(video.positions_NP3, theirs, probe.timeline.ticks_T)
    return Agreement(
        clip=clip,
        codec=codec,
        canvases=len(video.images_NHW3),
        num_places=num_places,
        num_same=num_same,
        num_padded=len(theirs) - num_places,
    )


def same_places(
    ours_NP3: npt.NDArray[np.int32], theirs_M3: npt.NDArray[np.int32], ticks_T: npt.NDArray[np.int32]
) -> tuple[int, int]:
    """(patches that the tool does not pad, how many of these are of the same time and place here).

    Args:
        theirs_M3: (frame, h, w) of each patch in the same order, negative for padding; M = N x P, else none is the same.
        ticks_T: tick of each frame.
    """
    shown = theirs_M3[:, 0] >= 0
    expected = theirs_M3.copy()
    expected[shown, 0] = ticks_T[theirs_M3[shown, 0]]
    ours_M3 = ours_NP3.reshape(-1, 3)
    if len(ours_M3) != len(expected):
        return int(shown.sum()), 0
    return int(shown.sum()), int((ours_M3 == expected).all(axis=1)[shown].sum())


def write_generated_clips(folder: Path) -> list[Path]:
    """Six clips: H.264, HEVC and VP9 in three containers, each camera; the last with black frames, where the tool pads."""
    kinds: tuple[tuple[str, Camera, str], ...] = (
        ("static_h264.mp4", "static", "libx264"),
        ("shaking_h264.mkv", "shaking", "libx264"),
        ("panning_hevc.mp4", "panning", "libx265"),
        ("shaking_vp9.webm", "shaking", "libvpx-vp9"),
        ("static_vp9.mp4", "static", "libvpx-vp9"),
    )
    for seed, (name, camera, codec) in enumerate(kinds):
        write_rope_clip(folder / name, seed=seed, camera=camera, codec=codec)
    _, frames = rope_clip(seed=len(kinds), seconds=4, camera="panning")
    dark = (np.zeros_like(frame) if 30 <= i < 90 and i % 20 else frame for i, frame in enumerate(frames))
    write_clip(folder / "dark_hevc.mp4", dark, fps=30, codec="libx265")
    return [*(folder / name for name, *_ in kinds), folder / "dark_hevc.mp4"]


def main(argv: Iterable[str] | None = None) -> int:
    """The command line. Returns 0 when every compared clip is identical, 1 when one is not, 2 when none can be compared."""
    parser = argparse.ArgumentParser(prog="ov2 bench legacy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="*", help="videos (default: six generated clips)")
    parser.add_argument("--budgets", default="16", help="canvases, comma-separated (default 16)")
    parser.add_argument("--grouping", choices=["fixed", "readiness"], default="fixed", help="of both (default fixed)")
    parser.add_argument("--peer-python", help="a Python that has codec-video-prep (default: one is made in the cache)")
    options = parser.parse_args(None if argv is None else list(argv))
    bit_cost_reader()
    python, note = find_peer(options.peer_python)
    if python is None:
        print(f"ov2: {note}", file=sys.stderr)
        return 2
    found: list[Agreement] = []
    with tempfile.TemporaryDirectory(prefix="ov2-bench-legacy-") as scratch:
        for path in options.clips or write_generated_clips(Path(scratch)):
            for budget in map(int, options.budgets.split(",")):
                out, grouping = Path(scratch) / "out", options.grouping
                found.append(compare_clip(path, budget=budget, python=python, folder=out, grouping=grouping))
                print(found[-1].line(), flush=True)
    compared = [one for one in found if one.reason is None]
    print(f"{sum(one.identical for one in compared)} of {len(compared)} identical (codec-video-prep {note})")
    return 2 if not compared else int(not all(one.identical for one in compared))
