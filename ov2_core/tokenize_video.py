"""tokenize_video: a path or file in, a TokenizedVideo out. The one file that composes media, signals and tokenizer.

Codec mode, one pass: probe by demuxing -> partition -> decode every frame once -> signals -> an open group collects
candidates -> its blocks are selected and packed when its last frame has come. Memory is bounded by one group's candidates,
whatever the length of the clip. Uniform mode decodes only what it must. If frames that the probe promised do not decode (a
damaged file), the clip is tokenized again on the frames that do.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ov2_core.canvas_layout import CanvasLayout, pack_group
from ov2_core.config import TokenizerConfig
from ov2_core.errors import BadItemError
from ov2_core.images import Images, new_images
from ov2_core.media.bit_cost import bit_cost_reader
from ov2_core.media.container import Source
from ov2_core.media.decode import DecodeStats, collect_frames, decode_frames, frames_collected, motion_vectors
from ov2_core.media.frame_folder import FrameFolder, load_frame, probe_frames, require_uniform
from ov2_core.media.hardware import require_decoder
from ov2_core.media.image import load_image
from ov2_core.media.kept import KeptPackets
from ov2_core.media.probe import VideoProbe, probe_video, probed_and_kept, restrict
from ov2_core.media.scale import Look, Scaler
from ov2_core.signals.frame import BlockSignals
from ov2_core.tokenize_legacy import legacy_canvases
from ov2_core.tokenized import Group, TokenizedVideo
from ov2_core.tokenizer.canvas import frame_positions
from ov2_core.tokenizer.frames import (
    FEWEST_LOOKED_AT_PER_IMAGE,
    FRAMES_PER_WINDOW,
    fit_size,
    frames_to_look_at,
    move_to_cheaper,
    num_uniform_frames,
    sample_uniform,
)
from ov2_core.tokenizer.gop import bit_cost, join, num_groups, partition
from ov2_core.tokenizer.group import OpenGroup

COST_BINS = 512


def tokenize_video(
    source: Source,
    config: TokenizerConfig,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    as_jpeg: bool = False,
) -> TokenizedVideo:
    """Tokenize one video, or a range of it.

    Args:
        source: local path, or seekable binary file.
        config: mode "codec" or "uniform".
        start_seconds, end_seconds: half-open range from the file's first shown frame.
        as_jpeg: the images as files, each group's made with it: memory does not grow with the pixels of all.

    Returns:
        Canvases or frames with the source place of every patch. Deterministic.

    Raises:
        ValueError: mode "still" (see tokenize_image); see require_readers.
        BadItemError: the file holds no decodable video in the range, or is too large.
    """
    if config.mode == "still":
        raise ValueError('mode "still" tokenizes images; use tokenize_image')
    require_readers(config)
    clock = _Clock()
    limit = config.max_source_px
    with frames_collected():
        if config.mode == "codec" and start_seconds is None and end_seconds is None:
            kept = KeptPackets(export_vectors=config.reads_vectors, loop_filter=config.loop_filter)
            with probed_and_kept(source, kept, max_source_px=limit, decoder=config.decoder) as probe:
                return _tokenize(source, probe, config, clock, kept, as_jpeg=as_jpeg)
        probe = probe_video(source, start_seconds=start_seconds, end_seconds=end_seconds, max_source_px=limit)
        return _tokenize(source, probe, config, clock, None, as_jpeg=as_jpeg)


def require_readers(config: TokenizerConfig) -> None:
    """What a config reads videos with, before anything is opened: without it every video would fail.

    Raises:
        ValueError: the bit-cost reader of policy "legacy" or the device of `decoder` is not here, and how to get it.
    """
    if config.policy == "legacy":
        bit_cost_reader()
    require_decoder(config.decoder)


def _tokenize(
    source: Source,
    probe: VideoProbe,
    config: TokenizerConfig,
    clock: "_Clock",
    kept: KeptPackets | None,
    *,
    as_jpeg: bool,
) -> TokenizedVideo:
    clock.lap("probe")
    stats = DecodeStats()
    flags = set(probe.flags)
    every_frame = False
    while True:
        if config.mode == "codec":
            result = _tokenize_codec(
                source, probe, config, stats, clock, kept, every_frame=every_frame, as_jpeg=as_jpeg
            )
        else:
            result = _tokenize_uniform(source, probe, config, stats, clock, as_jpeg=as_jpeg)
        if isinstance(result, TokenizedVideo):
            break
        if result is None:
            every_frame, stats = True, DecodeStats()
            continue
        flags.add("undecodable_frames")
        if not len(result):
            raise BadItemError(
                "no_decodable_frame",
                f"none of {probe.num_frames} frames decodes ({stats.decode_errors} errors); the file is damaged",
            )
        probe, stats = restrict(probe, result), DecodeStats()
    if stats.decode_errors:
        flags.add("decode_errors")
    if stats.corrupt_frames:
        flags.add("corrupt_frames")
    if probe.timeline.variable_rate:
        flags.add("variable_rate")
    return replace(result, flags=tuple(sorted(flags | set(result.flags))), timings_seconds=clock.seconds)


def tokenize_frames(
    folder: FrameFolder,
    config: TokenizerConfig,
    *,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    as_jpeg: bool = False,
) -> TokenizedVideo:
    """Tokenize a folder of frames as a video: uniform frames, those alone decoded. Frames of another size are brought to the
    first one's.

    Raises:
        BadItemError: unsupported for a codec recipe; empty_range; or a frame that cannot be read, naming it.
    """
    require_uniform(config.mode)
    clock = _Clock()
    limit = config.max_source_px
    probe = probe_frames(folder, max_source_px=limit, start_seconds=start_seconds, end_seconds=end_seconds)
    clock.lap("probe")
    chosen = sample_uniform(probe.seconds_T, num_uniform_frames(probe.num_frames, probe.duration_seconds, config))
    layout = CanvasLayout.fit(probe.width_px, probe.height_px, config)
    images, positions = new_images(len(chosen), layout, config, as_jpeg=as_jpeg)
    for number, index in enumerate(chosen.tolist()):
        frame = load_frame(folder, probe.num_skipped + index, max_source_px=limit)
        images.room(1)[0] = frame.resized(layout.width, layout.height)
        clock.lap("decode")
        images.keep()
        clock.lap("jpeg")
        positions[number] = layout.positions(int(probe.timeline.ticks_T[index]), config)
    made = _result(probe, config, images, positions, _windows(probe, chosen, config))
    return replace(made, timings_seconds=clock.seconds)


def tokenize_image(source: Source, config: TokenizerConfig) -> TokenizedVideo:
    """Tokenize one still at its native size (floored to the patch grid, at most config.still_area_px): one group, t = 0.

    Raises:
        BadItemError: source_missing, not_media or too_large.
    """
    clock = _Clock()
    image = load_image(source, max_source_px=config.max_source_px)
    width, height = fit_size(image.width, image.height, area_px=config.still_area_px, multiple_px=config.block_px)
    pixels = image.resized(width, height)
    positions = frame_positions(0, height // config.patch_px, width // config.patch_px)
    clock.lap("decode")
    return TokenizedVideo(
        images_NHW3=pixels[None],
        positions_NP3=positions[None],
        fps=None,
        groups=(Group(first_image=0, num_images=1, t_start=0, t_end=1, num_frames=1, bit_cost=1.0),),
        mode="still",
        policy=None,
        patch_px=config.patch_px,
        merge=config.merge,
        first_shown_seconds=0.0,
        duration_seconds=0.0,
        num_source_frames=1,
        codec=image.codec,
        source_width_px=image.width,
        source_height_px=image.height,
        frame_bit_cost=np.zeros(0, np.float32),
        flags=image.flags,
        timings_seconds=clock.seconds,
    )


class _Clock:
    """CPU seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, step: str) -> None:
        now = time.process_time()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self._last
        self._last = now


_Outcome = TokenizedVideo | npt.NDArray[np.int64]
"""A result, or the indices of the frames that decode where some do not."""


def _tokenize_codec(
    source: Source,
    probe: VideoProbe,
    config: TokenizerConfig,
    stats: DecodeStats,
    clock: _Clock,
    kept: KeptPackets | None,
    *,
    every_frame: bool,
    as_jpeg: bool,
) -> _Outcome | None:
    """None: something is damaged, and frames were passed over; they may be needed now."""
    groups = num_groups(probe.num_frames, config.budget, config.groups)
    if groups == 0:  # too short for one group: each frame is a canvas of its own
        every = np.arange(min(probe.num_frames, config.budget))
        return _tokenize_whole_frames(source, probe, every, config, stats, clock, as_jpeg=as_jpeg)
    if config.policy == "legacy":
        return _tokenize_legacy(source, probe, config, stats, clock, groups=groups, as_jpeg=as_jpeg)
    starts = partition(probe.frame_bytes_T, probe.keyframe_T, groups=groups, config=config.groups)
    starts, canvases = join(starts, probe.frame_bytes_T, probe.keyframe_T, config.groups)
    firsts = np.concatenate([[0], np.cumsum(canvases)])
    shown = np.arange(probe.num_frames)
    if not every_frame:
        shown = frames_to_look_at(
            probe.seconds_T,
            probe.discardable_T,
            starts,
            max_step_seconds=config.max_step_seconds,
            fewest=FEWEST_LOOKED_AT_PER_IMAGE * config.groups.canvases_per_group,
            short_whole=config.short_groups_whole,
        )
    whole = len(shown) == probe.num_frames
    layout = CanvasLayout.fit(probe.width_px, probe.height_px, config)
    scaler = layout.scaler(probe.rotation_degrees, config)
    images, positions = new_images(int(firsts[-1]), layout, config, as_jpeg=as_jpeg)
    ends = np.searchsorted(shown, starts)
    stands_for = np.diff(shown, append=probe.num_frames)
    group, count = 0, 0
    open_group = _open_group(layout, probe, config, ends, canvases, 0)
    signalled = _signalled_frames(source, probe, config, layout, scaler, shown, stats, clock, kept)
    for index, signals, look in signalled:
        if index != shown[count]:
            return np.array([*range(count), index, *(i for i, *_ in signalled)], np.int64) if whole else None
        open_group.push(
            int(probe.timeline.ticks_T[index]),
            signals,
            look.scaled,
            stands_for=int(stands_for[count]),
        )
        del look
        count += 1
        if count == ends[group + 1]:
            picks = open_group.close()
            clock.lap("select")
            here = slice(firsts[group], firsts[group + 1])
            pack_group(picks, scaler, layout, config, images.room(int(canvases[group])), positions[here])
            clock.lap("pack")
            images.keep()
            clock.lap("jpeg")
            group += 1
            if group < len(canvases):
                open_group = _open_group(layout, probe, config, ends, canvases, group)
    if count < len(shown):
        return np.arange(count) if whole else None
    return _result(probe, config, images, positions, _groups(probe, starts, canvases, config))


def _groups(
    probe: VideoProbe, starts: npt.NDArray[np.int64], canvases: npt.NDArray[np.int64], config: TokenizerConfig
) -> tuple[Group, ...]:
    """Groups of canvases: [G + 1] first frame of each and the end, [G] canvases of each."""
    cost = bit_cost(probe.frame_bytes_T, probe.keyframe_T, window_frames=config.groups.median_window_frames)
    share = np.add.reduceat(cost, starts[:-1]) / max(cost.sum(), 1.0)
    ticks = [*probe.timeline.ticks_T.tolist(), _end_tick(probe)]
    firsts = np.concatenate([[0], np.cumsum(canvases)])
    return tuple(
        Group(
            first_image=int(firsts[g]),
            num_images=int(canvases[g]),
            t_start=ticks[starts[g]],
            t_end=ticks[starts[g + 1]],
            num_frames=int(starts[g + 1] - starts[g]),
            bit_cost=float(share[g]),
        )
        for g in range(len(canvases))
    )


def _tokenize_legacy(
    source: Source,
    probe: VideoProbe,
    config: TokenizerConfig,
    stats: DecodeStats,
    clock: _Clock,
    *,
    groups: int,
    as_jpeg: bool,
) -> _Outcome:
    made = legacy_canvases(source, probe, config, stats, groups=groups, as_jpeg=as_jpeg)
    clock.lap("decode")
    if made is None:
        return _decodable(source, probe, config)
    canvases = np.full(len(made.starts) - 1, config.groups.canvases_per_group)
    result = _result(probe, config, made.images, made.positions_NP3, _groups(probe, made.starts, canvases, config))
    return replace(result, flags=(f"filled_blocks:{made.num_filled}",) if made.num_filled else ())


def _open_group(
    layout: CanvasLayout,
    probe: VideoProbe,
    config: TokenizerConfig,
    ends: npt.NDArray[np.intp],
    canvases: npt.NDArray[np.int64],
    group: int,
) -> OpenGroup:
    """The group that takes the decoded frames [ends[group], ends[group + 1])."""
    count = int(ends[group + 1] - ends[group])
    return OpenGroup(
        num_frames=count,
        num_canvases=int(canvases[group]),
        rows=layout.rows,
        columns=layout.columns,
        fps=probe.fps,
        config=config,
    )


def _signalled_frames(
    source: Source,
    probe: VideoProbe,
    config: TokenizerConfig,
    layout: CanvasLayout,
    scaler: Scaler,
    shown: npt.NDArray[np.int64],
    stats: DecodeStats,
    clock: _Clock,
    kept: KeptPackets | None = None,
) -> Iterator[tuple[int, BlockSignals, Look]]:
    """Every frame that is looked at as (index, signals, its look)."""
    extractor = layout.extractor(
        coded_height_px=probe.coded_height_px,
        coded_width_px=probe.coded_width_px,
        rotation_degrees=probe.rotation_degrees,
        config=config,
    )
    cells = layout.cells(probe.rotation_degrees)
    frames = decode_frames(
        source,
        probe,
        stats=stats,
        wanted=shown.tolist(),
        seek=False,
        export_vectors=config.reads_vectors,
        loop_filter=config.loop_filter,
        decoder=config.decoder,
        kept=kept,
    )
    previous = -1
    for number, (index, frame) in enumerate(frames):
        clock.lap("decode")
        back, ahead = probe.anchor_distance_T2[index].tolist()
        vectors = motion_vectors(frame) if config.reads_vectors else None
        look = scaler.look(frame)
        signals = extractor.extract(
            cells(*look.luma()), vectors=vectors, frames_back=back, frames_ahead=ahead, step=index - previous
        )
        del vectors, frame
        previous = index
        clock.lap("signals")
        yield index, signals, look
        del look
        if config.reads_vectors:
            collect_frames(number)


def _tokenize_uniform(
    source: Source, probe: VideoProbe, config: TokenizerConfig, stats: DecodeStats, clock: _Clock, *, as_jpeg: bool
) -> _Outcome:
    count = num_uniform_frames(probe.num_frames, probe.duration_seconds, config)
    chosen = sample_uniform(probe.seconds_T, count)
    if probe.duration_seconds >= config.keyframe_reach_min_seconds:
        chosen = move_to_cheaper(chosen, probe.seconds_T, probe.keyframe_T, reach=config.keyframe_reach)
    return _tokenize_whole_frames(source, probe, chosen, config, stats, clock, as_jpeg=as_jpeg)


def _tokenize_whole_frames(
    source: Source,
    probe: VideoProbe,
    chosen: npt.NDArray[np.int64],
    config: TokenizerConfig,
    stats: DecodeStats,
    clock: _Clock,
    *,
    as_jpeg: bool,
) -> _Outcome:
    """Frames shown whole, in windows of four."""
    layout = CanvasLayout.fit(probe.width_px, probe.height_px, config)
    scaler = layout.scaler(probe.rotation_degrees, config)
    images, positions = new_images(len(chosen), layout, config, as_jpeg=as_jpeg)
    got: list[int] = []
    for index, frame in decode_frames(source, probe, stats=stats, wanted=chosen.tolist(), decoder=config.decoder):
        images.room(1)[0] = scaler.rgb(scaler.scaled(frame))
        clock.lap("decode")
        images.keep()
        clock.lap("jpeg")
        positions[len(got)] = layout.positions(int(probe.timeline.ticks_T[index]), config)
        got.append(index)
    clock.lap("decode")
    if got != chosen.tolist():
        return _decodable(source, probe, config)
    return _result(probe, config, images, positions, _windows(probe, chosen, config))


def _decodable(source: Source, probe: VideoProbe, config: TokenizerConfig) -> npt.NDArray[np.int64]:
    """Indices of the frames that decode."""
    return np.array([i for i, _ in decode_frames(source, probe, stats=DecodeStats(), decoder=config.decoder)], np.int64)


def _windows(probe: VideoProbe, chosen: npt.NDArray[np.int64], config: TokenizerConfig) -> tuple[Group, ...]:
    """Groups of frames shown whole: windows of four."""
    cost = bit_cost(probe.frame_bytes_T, probe.keyframe_T, window_frames=config.groups.median_window_frames)
    edges = [0, *chosen[FRAMES_PER_WINDOW::FRAMES_PER_WINDOW].tolist(), probe.num_frames]
    all_ticks = [*probe.timeline.ticks_T.tolist(), _end_tick(probe)]
    return tuple(
        Group(
            first_image=g * FRAMES_PER_WINDOW,
            num_images=min(FRAMES_PER_WINDOW, len(chosen) - g * FRAMES_PER_WINDOW),
            t_start=all_ticks[low],
            t_end=all_ticks[high],
            num_frames=high - low,
            bit_cost=float(cost[low:high].sum() / max(cost.sum(), 1.0)),
        )
        for g, (low, high) in enumerate(pairwise(edges))
    )


def _end_tick(probe: VideoProbe) -> int:
    """One past the last tick: where the last frame ends."""
    last = int(probe.timeline.ticks_T[-1])
    return max(last + 1, round(probe.duration_seconds * probe.fps))


def _binned_cost(probe: VideoProbe, config: TokenizerConfig) -> npt.NDArray[np.float32]:
    cost = bit_cost(probe.frame_bytes_T, probe.keyframe_T, window_frames=config.groups.median_window_frames)
    bins = min(COST_BINS, len(cost))
    where = np.minimum((probe.seconds_T - probe.seconds_T[0]) / max(probe.duration_seconds, 1e-9) * bins, bins - 1)
    binned = np.bincount(where.astype(np.int64), cost, minlength=bins)
    share: npt.NDArray[np.float32] = (binned / max(binned.sum(), 1.0)).astype(np.float32)
    return share


def _result(
    probe: VideoProbe,
    config: TokenizerConfig,
    images: Images,
    positions: npt.NDArray[np.int32],
    groups: tuple[Group, ...],
) -> TokenizedVideo:
    return TokenizedVideo(
        images_NHW3=images.pixels(),
        jpegs_N=images.files(),
        positions_NP3=positions,
        fps=probe.fps,
        groups=groups,
        mode=config.mode,
        policy=config.policy if config.mode == "codec" else None,
        patch_px=config.patch_px,
        merge=config.merge,
        first_shown_seconds=float(probe.seconds_T[0]),
        duration_seconds=probe.duration_seconds,
        num_source_frames=probe.num_frames,
        codec=probe.codec,
        source_width_px=probe.width_px,
        source_height_px=probe.height_px,
        frame_bit_cost=_binned_cost(probe, config),
        flags=(),
    )
