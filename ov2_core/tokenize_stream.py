"""tokenize_stream: a live or endless source in, closed groups out as they are decided. Composes media, signals and tokenizer.

Frames are decoded once, scaled at once and let go; held are the frames of a run of B frames, of the first second (on which the
rate of the timeline is fitted), around a boundary that is not yet certain, and the candidates of the open group: a number that
does not depend on how long the stream is. A group is emitted at most 2 s of stream time after its end and is not revised; what has
been emitted up to a moment depends only on what came up to it.

A gap in time, a new clock and a new size of the picture end the group at hand. Across a gap time goes on as the stamps say; with a
new clock it goes on one frame after the last frame. Where the source ends, what is pending becomes the last group.
"""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ov2_core.canvas_layout import CanvasLayout, pack_group
from ov2_core.config import Policy, StreamConfig, TokenizerConfig
from ov2_core.errors import BadItemError
from ov2_core.media.container import Source
from ov2_core.media.decode import DecodeStats, collect_frames, frames_collected, motion_vectors
from ov2_core.media.live import AnchorQueue, LiveFrame, LiveStatus, live_frames, open_live
from ov2_core.media.probe import shown_size
from ov2_core.media.timeline import fit_timeline
from ov2_core.signals.frame import BlockSignals
from ov2_core.tokenized import Group, TokenizedVideo
from ov2_core.tokenizer.stream import ClosedGroup, GroupStream, StreamAccount, StreamFrame

FIT_SECONDS = 1.0
FIT_FRAMES = 64
"""The rate of the timeline is fitted on so much of a stretch's beginning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamGroup:
    """One emitted group."""

    index: int
    images_NHW3: npt.NDArray[np.uint8]
    """The I-canvas and the P-canvases; or whole frames, where too few came or too little was left of the rate."""
    positions_NP3: npt.NDArray[np.int32]
    """As in TokenizedVideo, but t counts from the group's first frame: an endless stream outgrows int32."""
    whole: bool
    fps: float
    """Ticks a second: a position's time is start_seconds + t / fps."""
    start_seconds: float
    end_seconds: float
    """Half-open span on the stream's clock, 0 = first frame."""
    num_ticks: int
    num_frames: int
    cost_bytes: float
    """Bit cost of its frames."""
    emitted_seconds: float
    """Time of the newest frame when it was emitted; at most 2 s after end_seconds, but for what the source itself leaves out."""
    stretch: int
    """Raised by every gap, new clock and new size."""
    codec: str
    source_width_px: int
    source_height_px: int
    patch_px: int
    merge: int
    policy: Policy

    @property
    def num_tokens(self) -> int:
        """Merged visual tokens."""
        return int(self.positions_NP3.shape[0] * self.positions_NP3.shape[1] // self.merge**2)


@dataclass(slots=True)
class StreamStats:
    """What happened; read it while groups come or when they have ended."""

    status: LiveStatus = field(default_factory=LiveStatus)
    decoding: DecodeStats = field(default_factory=DecodeStats)
    num_frames: int = 0
    num_groups: int = 0
    num_images: int = 0
    dropped_frames: int = 0
    """In stretches too short for what was left in the account of canvases."""
    repeated_frames: int = 0
    """Not later than the frame before; left out."""
    gaps: int = 0
    new_clocks: int = 0
    new_sizes: int = 0
    seconds: float = 0.0
    """Of the newest frame on the stream's clock."""
    max_held_frames: int = 0
    """Most frames whose pixels were held at once."""


def tokenize_stream(
    source: Source,
    config: TokenizerConfig,
    stream: StreamConfig,
    *,
    timeout_seconds: float = 10.0,
    max_seconds: float | None = None,
    options: dict[str, str] | None = None,
    stats: StreamStats | None = None,
) -> Iterator[StreamGroup]:
    """Tokenize a source as it comes.

    Args:
        source: path, named pipe, "-", URL (RTSP, HTTP ...) or an object with read().
        config: mode "codec"; its budget does not count, `stream.canvases_per_minute` does.
        timeout_seconds: longest silence; then the stream is over, and stats.status says "stalled".
        max_seconds: stop after so much stream time.
        options: for FFmpeg, e.g. {"rtsp_transport": "tcp"}.

    Yields:
        Groups in order of time.

    Raises:
        ValueError: a mode other than "codec", groups of several sizes, or times that are not positive; before anything is opened.
        BadItemError: the source cannot be opened, holds no video, no frame of it decodes, or its frames are too large.
    """
    if config.mode != "codec":
        raise ValueError(
            f'a stream is tokenized in mode "codec", got mode {config.mode!r}; use a recipe codec-N or evidence-N'
        )
    if config.policy == "legacy":
        raise ValueError('policy "legacy" samples a whole clip, a stream has no end; use policy saliency or evidence')
    if config.groups.max_canvases_per_group > config.groups.canvases_per_group:
        raise ValueError(
            f"groups.max_canvases_per_group is for whole clips, got {config.groups.max_canvases_per_group}: all groups of a stream "
            "have groups.canvases_per_group"
        )
    for name, value in (("timeout_seconds", timeout_seconds), ("max_seconds", max_seconds)):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name} must be > 0 and finite, got {value}")
    return _groups(source, config, stream, timeout_seconds, max_seconds, options, stats or StreamStats())


def join_groups(groups: Sequence[StreamGroup]) -> TokenizedVideo:
    """Consecutive or chosen groups as one TokenizedVideo, t counted from the first frame of the first.

    Raises:
        ValueError: no group, groups of several sizes or rates, or a span too long for int32 ticks.
    """
    if not groups:
        raise ValueError("no groups to join")
    first = groups[0]
    kinds = {(g.images_NHW3.shape[1:], g.fps) for g in groups}
    if len(kinds) > 1:
        raise ValueError(
            f"groups of {len(kinds)} sizes or rates cannot be joined; join those of one `stretch` at a time"
        )
    starts = [round((g.start_seconds - first.start_seconds) * first.fps) for g in groups]
    if starts[-1] + groups[-1].num_ticks > np.iinfo(np.int32).max:
        raise ValueError(f"{len(groups)} groups span too many ticks for int32 positions; join fewer")
    counts = np.cumsum([0, *(len(g.images_NHW3) for g in groups)]).tolist()
    total = max(sum(g.cost_bytes for g in groups), 1.0)
    return TokenizedVideo(
        images_NHW3=np.concatenate([g.images_NHW3 for g in groups]),
        positions_NP3=np.concatenate(
            [g.positions_NP3 + np.array([t, 0, 0], np.int32) for g, t in zip(groups, starts, strict=True)]
        ),
        fps=first.fps,
        groups=tuple(
            Group(
                first_image=counts[i],
                num_images=len(g.images_NHW3),
                t_start=starts[i],
                t_end=starts[i] + g.num_ticks,
                num_frames=g.num_frames,
                bit_cost=g.cost_bytes / total,
            )
            for i, g in enumerate(groups)
        ),
        mode="codec",
        policy=first.policy,
        patch_px=first.patch_px,
        merge=first.merge,
        first_shown_seconds=first.start_seconds,
        duration_seconds=groups[-1].end_seconds - first.start_seconds,
        num_source_frames=sum(g.num_frames for g in groups),
        codec=first.codec,
        source_width_px=first.source_width_px,
        source_height_px=first.source_height_px,
        frame_bit_cost=np.array([g.cost_bytes / total for g in groups], np.float32),
        flags=("streamed",),
    )


def _groups(
    source: Source,
    config: TokenizerConfig,
    stream_config: StreamConfig,
    timeout_seconds: float,
    max_seconds: float | None,
    options: dict[str, str] | None,
    stats: StreamStats,
) -> Iterator[StreamGroup]:
    account = StreamAccount(config=config, stream=stream_config)
    clock = _Clock(stream_config, stats)
    stretch: _Stretch | None = None
    with frames_collected(), open_live(source, timeout_seconds=timeout_seconds, options=options) as (container, stream):
        frames = live_frames(container, stream, stats=stats.decoding, status=stats.status)
        settled = False
        for count, live in enumerate(frames):
            when = clock.read(live)
            if when is None:
                continue
            seconds, broken = when
            if max_seconds is not None and seconds >= max_seconds:
                stats.status.ended = "end"
                break
            shape = (live.frame.width, live.frame.height, round(live.frame.rotation / 90) * 90 % 360)
            new_size = stretch is not None and stretch.shape != shape
            if stretch is None or broken or new_size:
                stats.new_sizes += new_size
                if stretch is not None:
                    yield from stretch.finish()
                kept = None if stretch is None or new_size else stretch.fps
                number = 0 if stretch is None else stretch.number + 1
                stretch = _Stretch(shape, stream, account, stats, seconds, number=number, fps=kept)
            groups = stretch.push(live, seconds)
            del live
            collect_frames(count)
            if groups and not settled:  # all kernels were called; what numba compiled for them is long-lived as well
                settled = True
                gc.freeze()
            yield from groups
        if stretch is None:
            status = stats.status
            how = f"; the source {status.ended}: {status.message}" if status.ended in ("stalled", "failed") else ""
            raise BadItemError(
                "no_decodable_frame", f"no frame decodes ({stats.decoding.decode_errors} errors){how}", stage="tokenize"
            )
        yield from stretch.finish()
        stats.dropped_frames = account.dropped_frames


class _Clock:
    """The stream's own clock: 0 at the first frame, strictly ascending."""

    def __init__(self, config: StreamConfig, stats: StreamStats) -> None:
        self._config, self._stats = config, stats
        self._offset: float | None = None
        self._last = 0.0
        self._interval = 1 / 25
        """The last ordinary time between two frames."""

    def read(self, live: LiveFrame) -> tuple[float, bool] | None:
        """(seconds, whether the stretch is broken before this frame), or None for a frame that is to be left out."""
        stamp = float(live.stamp * live.time_base)
        if self._offset is None:
            self._offset = stamp
            return 0.0, False
        seconds = stamp - self._offset
        step = seconds - self._last
        if live.new_clock or step <= -self._config.max_gap_seconds or step > self._config.max_jump_seconds:
            seconds = self._last + self._interval
            self._offset = stamp - seconds
            self._stats.new_clocks += 1
            broken = True
        elif step <= 0:
            self._stats.repeated_frames += 1
            return None
        else:
            broken = step > self._config.max_gap_seconds
            self._stats.gaps += broken
            if not broken:
                self._interval = step
        self._last = self._stats.seconds = seconds
        return seconds, broken


class _Stretch:
    """Frames of one size on one clock without a gap."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        stream: Any,
        account: StreamAccount,
        stats: StreamStats,
        start_seconds: float,
        *,
        number: int,
        fps: float | None,
    ) -> None:
        width, height, rotation = shape
        config = account.config
        if width * height > config.max_source_px:
            raise BadItemError(
                "too_large", f"{width} x {height} px exceeds max_source_px ({config.max_source_px}); raise it"
            )
        self.shape, self.number = shape, number
        self.fps = fps
        self._start = start_seconds
        self._account, self._config, self._stats = account, config, stats
        self._codec = stream.codec_context.codec.canonical_name
        self._source_size = shown_size(stream, width, height, rotation)
        self._layout = CanvasLayout.fit(*self._source_size, config)
        self._scaler = self._layout.scaler(rotation, config)
        self._cells = self._layout.cells(rotation)
        self._extractor = self._layout.extractor(
            coded_height_px=height, coded_width_px=width, rotation_degrees=rotation, config=config
        )
        self._rates = [r for r in (stream.guessed_rate, stream.average_rate, stream.base_rate) if r]
        self._waiting: AnchorQueue[tuple[LiveFrame, float, npt.NDArray[np.float32], Any, Any]] = AnchorQueue()
        self._first: list[tuple[LiveFrame, float, BlockSignals, Any]] = []
        """Until the rate is known."""
        self._groups: GroupStream | None = None
        self._tick = -1

    def push(self, live: LiveFrame, seconds: float) -> list[StreamGroup]:
        """The next frame; its own pixels are let go."""
        frame = live.frame
        vectors = motion_vectors(frame) if self._config.reads_vectors else None
        look = self._scaler.look(frame)
        item = (live, seconds, self._cells(*look.luma()), vectors, look.scaled())
        live.frame = None
        self._stats.num_frames += 1
        made: list[StreamGroup] = []
        for (known, at, cells, vectors, scaled), back, ahead in self._waiting.push(item, anchor=live.anchor):
            signals = self._extractor.extract(cells, vectors=vectors, frames_back=back, frames_ahead=ahead)
            made += self._signalled(known, at, signals, scaled)
        held = len(self._waiting) + len(self._first) + (0 if self._groups is None else self._groups.num_held)
        self._stats.max_held_frames = max(self._stats.max_held_frames, held)
        return made

    def finish(self) -> list[StreamGroup]:
        """The stretch is over."""
        made: list[StreamGroup] = []
        for (live, at, cells, vectors, scaled), back, ahead in self._waiting.flush():
            signals = self._extractor.extract(cells, vectors=vectors, frames_back=back, frames_ahead=ahead)
            made += self._signalled(live, at, signals, scaled)
        if self._first:
            made += self._fitted()
        if self._groups is not None:
            made += self._packed(self._groups.cut())
        return made

    def _signalled(self, live: LiveFrame, seconds: float, signals: BlockSignals, pixels: Any) -> list[StreamGroup]:
        if self._groups is not None:
            return self._grouped(live, seconds, signals, pixels)
        self._first.append((live, seconds, signals, pixels))
        enough = seconds - self._start >= FIT_SECONDS or len(self._first) >= FIT_FRAMES
        return self._fitted() if enough or self.fps is not None else []

    def _fitted(self) -> list[StreamGroup]:
        """The rate is known now: what waited for it goes on."""
        if self.fps is None:
            self.fps = float(fit_timeline(np.array([s for _, s, _, _ in self._first]), self._rates).fps)
        self._groups = GroupStream(
            rows=self._layout.rows, columns=self._layout.columns, fps=self.fps, account=self._account
        )
        waited, self._first = self._first, []
        return [group for item in waited for group in self._grouped(*item)]

    def _grouped(self, live: LiveFrame, seconds: float, signals: BlockSignals, pixels: Any) -> list[StreamGroup]:
        assert self._groups is not None
        assert self.fps is not None
        self._tick = max(self._tick + 1, round((seconds - self._start) * self.fps))
        frame = StreamFrame(
            tick=self._tick,
            seconds=seconds,
            num_bytes=live.num_bytes,
            keyframe=live.keyframe,
            signals=signals,
            pixels=pixels,
        )
        return self._packed(self._groups.push(frame))

    def _packed(self, closed: list[ClosedGroup]) -> list[StreamGroup]:
        return [self._pack(group) for group in closed]

    def _pack(self, closed: ClosedGroup) -> StreamGroup:
        assert self.fps is not None
        config, stats = self._config, self._stats
        picks = [replace(pick, tick=pick.tick - closed.tick) for pick in closed.picks]
        images, positions = self._layout.empty(len(picks) if closed.whole else config.groups.canvases_per_group, config)
        if closed.whole:
            for number, pick in enumerate(picks):
                images[number] = self._scaler.rgb(pick.pixels)
                positions[number] = self._layout.positions(pick.tick, config)
        else:
            pack_group(picks, self._scaler, self._layout, config, images, positions)
        stats.num_groups += 1
        stats.num_images += len(images)
        return StreamGroup(
            index=stats.num_groups - 1,
            images_NHW3=images,
            positions_NP3=positions,
            whole=closed.whole,
            fps=self.fps,
            start_seconds=closed.seconds,
            end_seconds=closed.end_seconds,
            num_ticks=closed.end_tick - closed.tick,
            num_frames=closed.num_frames,
            cost_bytes=closed.cost_bytes,
            emitted_seconds=stats.seconds,
            stretch=self.number,
            codec=self._codec,
            source_width_px=self._source_size[0],
            source_height_px=self._source_size[1],
            patch_px=config.patch_px,
            merge=config.merge,
            policy=config.policy,
        )
