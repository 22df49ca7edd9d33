"""Groups of a stream that may never end: cut as frames come, closed within a bounded delay, never revised.

In: frames in order of time with their bytes and signals. Out: closed groups with the blocks that are shown. The kernels are
those of a clip (bit cost, spikes and snapping of gop.py; OpenGroup and all below it). What differs: the whole clip's bit cost is
not known, so cost counts against its running mean, and canvases are given by time.

    w(t) = (1 - u) c(t) / mean rate of c + u * (time since the frame before)        u: groups.uniform_share

is a frame's step of the clock; a boundary stands where the clock has gone a group's time further. It waits for `reach` seconds
more, in case a spike stands there, and snaps. Canvases are paid from an account that fills at the rate and holds at most
`burst_groups` groups: over any time they are at most rate x time + burst. What is emitted depends only on the frames so far.
"""

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ov2_core.config import StreamConfig, TokenizerConfig
from ov2_core.signals.frame import BlockSignals
from ov2_core.tokenizer.gop import bit_cost, snap, spikes
from ov2_core.tokenizer.group import FramePick, OpenGroup

SHORT_SHARE = 0.25
"""A rest, before a cut, on which the clock has gone less than this share of a group's time is one frame shown whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamFrame:
    """One displayed frame of a stream."""

    tick: int
    """Ascending."""
    seconds: float
    """Ascending."""
    num_bytes: int
    keyframe: bool
    signals: BlockSignals
    pixels: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class ClosedGroup:
    """A group that is decided."""

    picks: list[FramePick]
    whole: bool
    """Each pick is a canvas of its own: too few frames, or too little in the account, for I- and P-canvases."""
    tick: int
    end_tick: int
    """Of the first frame after it; where there is none, one past its last."""
    seconds: float
    end_seconds: float
    num_frames: int
    cost_bytes: float
    decided_seconds: float
    """Time of the newest frame when it was decided."""


@dataclass(slots=True)
class StreamAccount:
    """Running mean of the bit cost and the account of canvases: what goes on when a stream is cut or changes its size."""

    config: TokenizerConfig
    stream: StreamConfig
    canvases: float = -1.0
    """In the account; -1: full."""
    dropped_frames: int = 0
    """Of groups that the account could not pay at all."""
    _bytes: float = 0.0
    _seconds: float = 0.0
    _window: deque[tuple[int, bool]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        if self.canvases < 0:
            self.canvases = float(self.limit)
        self._window = deque(maxlen=self.config.groups.median_window_frames)

    @property
    def limit(self) -> int:
        """Most canvases that the account holds."""
        return self.stream.burst_groups * self.config.groups.canvases_per_group

    @property
    def can_pay_group(self) -> bool:
        """Whether the account holds a whole group."""
        return self.canvases >= self.config.groups.canvases_per_group - 1e-9

    @property
    def group_seconds(self) -> float:
        """Mean time that a group stands for."""
        return self.config.groups.canvases_per_group * 60.0 / self.stream.canvases_per_minute

    def frame_cost(self, num_bytes: int, keyframe: bool) -> float:
        """Bytes of the next frame; a keyframe's replaced by the median of the frames before it."""
        self._window.append((num_bytes, keyframe))
        recent = list(self._window)[-(self.config.groups.median_window_frames // 2 + 1) :]
        sizes, keys = np.array([r[0] for r in recent], np.int64), np.array([r[1] for r in recent])
        return float(bit_cost(sizes, keys, window_frames=self.config.groups.median_window_frames)[-1])

    def step(self, cost_bytes: float, interval_seconds: float) -> float:
        """How far the clock goes on with a frame that comes `interval_seconds` after the one before."""
        if interval_seconds <= 0:
            return 0.0
        per_second = self.stream.canvases_per_minute / 60.0
        self.canvases = min(self.limit, self.canvases + per_second * interval_seconds)
        fade = float(np.exp(-interval_seconds / self.stream.cost_memory_seconds))
        self._bytes = self._bytes * fade + cost_bytes
        self._seconds = self._seconds * fade + interval_seconds
        share = self.config.groups.uniform_share
        rate = self._bytes / self._seconds
        by_cost = cost_bytes / rate if rate > 0 else interval_seconds
        return (1 - share) * by_cost + share * interval_seconds


@dataclass(frozen=True, slots=True)
class _Pending:
    frame: StreamFrame
    clock: float
    cost_bytes: float
    spike: tuple[int, bool]


class GroupStream:
    """Cuts one unbroken stretch of a stream, of one size, into groups.

    Args:
        rows, columns: blocks of a canvas.
        fps: ticks a second.
        account: shared by all stretches of the stream.
    """

    def __init__(self, *, rows: int, columns: int, fps: float, account: StreamAccount) -> None:
        self._shape, self._fps, self._account = (rows, columns), fps, account
        self._config, groups = account.config, account.config.groups
        self._reach = min(groups.snap_share * account.group_seconds, account.stream.max_reach_seconds)
        self._open: OpenGroup | None = None
        self._first: StreamFrame | None = None
        self._cost = 0.0
        """Of the frames in the open group."""
        self._pending: list[_Pending] = []
        """Frames that may still belong to either side of a boundary."""
        self._before: deque[tuple[int, bool]] = deque(maxlen=groups.median_window_frames)
        """Sizes of the last frames that are no longer pending."""
        self._clock = 0.0
        self._target = account.group_seconds
        self._boundary: int | None = None
        """Index into pending of the frame at which the clock reached its target."""
        self._scanned = 0
        self._last: StreamFrame | None = None

    @property
    def num_held(self) -> int:
        """Frames whose pixels are held."""
        return len(self._pending) + (0 if self._open is None else self._open.num_held)

    def push(self, frame: StreamFrame) -> list[ClosedGroup]:
        """Take the next frame.

        Returns:
            Groups that are decided by it, mostly none.
        """
        account = self._account
        cost = account.frame_cost(frame.num_bytes, frame.keyframe)
        self._clock += account.step(cost, 0.0 if self._last is None else frame.seconds - self._last.seconds)
        self._last = frame
        self._pending.append(_Pending(frame, self._clock, cost, (frame.num_bytes, frame.keyframe)))
        closed = self._decide(final=False)
        if self._boundary is None:
            old = frame.seconds - self._reach
            count = sum(p.frame.seconds < old for p in self._pending[: self._scanned])
            self._into_group(count)
        return closed

    def cut(self) -> list[ClosedGroup]:
        """End the stretch: everything that is pending is closed."""
        closed = self._decide(final=True)
        end = len(self._pending)
        if self._last is not None and (end or self._open is not None):
            self._into_group(end)
            due = 1 + (self._clock - self._target) / self._account.group_seconds
            closed.extend(self._close(self._last.tick + 1, self._last.seconds + 1 / self._fps, due=due))
        return closed

    def _decide(self, *, final: bool) -> list[ClosedGroup]:
        """Close every group whose boundary is certain."""
        closed: list[ClosedGroup] = []
        while True:
            if self._boundary is None:
                self._boundary = self._reached()
            if self._boundary is None or self._last is None:
                return closed
            at = self._pending[self._boundary]
            if not final and self._last.seconds < at.frame.seconds + self._reach:
                return closed
            end = self._snapped(self._boundary)
            self._target = at.clock + self._account.group_seconds
            following = self._pending[end].frame
            self._boundary = None
            self._into_group(end)
            closed.extend(self._close(following.tick, following.seconds))

    def _reached(self) -> int | None:
        """The next pending frame at which the clock, the least length and the account allow a boundary."""
        groups = self._config.groups
        inside = 0 if self._open is None else self._open.num_frames
        while self._scanned < len(self._pending):
            index = self._scanned
            self._scanned += 1
            if (
                self._pending[index].clock >= self._target - 1e-9
                and inside + index >= groups.min_frames
                and self._account.can_pay_group
            ):
                return index
        return None

    def _snapped(self, boundary: int) -> int:
        groups = self._config.groups
        sizes = [*self._before, *(p.spike for p in self._pending)]
        cost = bit_cost(
            np.array([s[0] for s in sizes], np.int64),
            np.array([s[1] for s in sizes]),
            window_frames=groups.median_window_frames,
        )
        spike = spikes(cost, window_frames=groups.median_window_frames)[len(self._before) :]
        inside = 0 if self._open is None else self._open.num_frames
        seconds = [p.frame.seconds for p in self._pending]
        low = int(np.searchsorted(seconds, seconds[boundary] - self._reach - 1e-9))
        high = int(np.searchsorted(seconds, seconds[boundary] + self._reach + 1e-9))
        return snap(boundary, spike, max(low, groups.min_frames - inside, 1), high, groups.spike_ratio)

    def _into_group(self, count: int) -> None:
        """The first `count` pending frames belong to the open group."""
        for pending in self._pending[:count]:
            frame = pending.frame
            if self._open is None:
                rows, columns = self._shape
                self._open = OpenGroup(num_frames=None, rows=rows, columns=columns, fps=self._fps, config=self._config)
                self._first, self._cost = frame, 0.0
            self._open.push(frame.tick, frame.signals, partial(getattr, frame, "pixels"))
            self._cost += pending.cost_bytes
            self._before.append(pending.spike)
        del self._pending[:count]
        self._scanned = max(0, self._scanned - count)

    def _close(self, end_tick: int, end_seconds: float, *, due: float = 1.0) -> list[ClosedGroup]:
        """`due`: how much of a group's time the clock has gone."""
        group, first, account = self._open, self._first, self._account
        assert group is not None
        assert first is not None
        assert self._last is not None
        self._open = self._first = None
        groups = self._config.groups
        whole = group.num_frames < groups.min_frames or not account.can_pay_group or due < SHORT_SHARE
        if whole:
            most = 1 if due < SHORT_SHARE else groups.canvases_per_group
            count = min(group.num_frames, most, int(account.canvases))
            if count == 0:
                account.dropped_frames += group.num_frames
                return []
            picks = group.close_whole(count)
            account.canvases -= count
        else:
            picks = group.close()
            account.canvases -= groups.canvases_per_group
        return [
            ClosedGroup(
                picks=picks,
                whole=whole,
                tick=first.tick,
                end_tick=end_tick,
                seconds=first.seconds,
                end_seconds=end_seconds,
                num_frames=group.num_frames,
                cost_bytes=self._cost,
                decided_seconds=self._last.seconds,
            )
        ]
