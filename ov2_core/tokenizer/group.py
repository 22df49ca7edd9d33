"""An open group: takes the signals of its frames one by one, in bounded memory, and at its end says which blocks are shown.

The number of frames is known from the partition. At most `candidates_per_group` of them stay candidates: the first (the I-canvas)
and one in each of equal slots, the most active of its slot. A group that is short enough keeps every frame. The caller
hands over any object that stands for a frame's pixels; those of frames that fell out are let go.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ov2_core.config import TokenizerConfig
from ov2_core.signals.frame import BlockSignals
from ov2_core.tokenizer.blocks import select_evidence, select_saliency
from ov2_core.tokenizer.hold import hold_costs
from ov2_core.tokenizer.score import score_blocks

TOP_BLOCKS = 8
"""A frame's activity, when slots choose, is that of its most active blocks: events are small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FramePick:
    """Blocks shown of one frame."""

    tick: int
    pixels: Any
    blocks: npt.NDArray[np.int64]
    """Ascending."""


@dataclass(slots=True)
class _Slot:
    tick: int
    pixels: Any
    signals: BlockSignals
    activity: float
    sum_BF: npt.NDArray[np.float64] | None
    """Over the frames from the candidate on, inside its slot; likewise square_B and frames."""
    square_B: npt.NDArray[np.float64] | None
    frames: int


class OpenGroup:
    """One group while its frames arrive.

    Args:
        num_frames: frames that will be pushed, >= config.groups.min_frames.
        num_blocks: blocks of a canvas.
        fps: ticks a second.
    """

    def __init__(self, *, num_frames: int, num_blocks: int, fps: float, config: TokenizerConfig) -> None:
        self._num_frames = num_frames
        self._num_blocks = num_blocks
        self._fps = fps
        self._config = config
        self._num_slots = min(num_frames, config.candidates_per_group)
        self._slots: list[_Slot] = []
        self._pushed = 0

    def push(self, tick: int, signals: BlockSignals, pixels: Any) -> None:
        """Take the next frame. The pixels object is kept only while the frame is a candidate."""
        assert self._pushed < self._num_frames
        evidence = self._config.policy == "evidence"
        active = np.sort(_activity(signals))[-TOP_BLOCKS:].sum()
        slot = 0 if self._pushed == 0 else 1 + (self._pushed - 1) * (self._num_slots - 1) // (self._num_frames - 1)
        self._pushed += 1
        total = square = None
        if evidence:
            assert signals.feature_BF is not None
            total = signals.feature_BF.astype(np.float64)
            square = (total**2).sum(axis=1)
        if slot == len(self._slots):
            self._slots.append(_Slot(tick, pixels, signals, float(active), total, square, 1))
            return
        current = self._slots[slot]
        if slot > 0 and active > current.activity:
            if evidence:  # what the old candidate stood for is held by the one before it
                _absorb(self._slots[slot - 1], current.sum_BF, current.square_B, current.frames)
            self._slots[slot] = _Slot(tick, pixels, signals, float(active), total, square, 1)
        elif evidence:
            _absorb(current, total, square, 1)

    def close(self) -> list[FramePick]:
        """Select the blocks of the P-canvases.

        Returns:
            Picks in order of time. The first is the group's first frame with all its blocks: the I-canvas; the others hold
            (canvases_per_group - 1) x num_blocks blocks together.
        """
        assert self._pushed == self._num_frames, f"{self._pushed} of {self._num_frames} frames were pushed"
        config, slots = self._config, self._slots
        budget = (config.groups.canvases_per_group - 1) * self._num_blocks
        if config.policy == "evidence":
            chosen = self._select_by_hold(budget)
        else:
            score_KB = score_blocks(
                np.stack([s.signals.motion_B for s in slots]),
                np.stack([s.signals.residual_B for s in slots]),
                np.stack([s.signals.intra_B for s in slots]),
                config.score,
            )
            chosen = select_saliency(score_KB, budget=budget)
        picks = [FramePick(tick=slots[0].tick, pixels=slots[0].pixels, blocks=np.arange(self._num_blocks))]
        for k in np.unique(chosen[:, 0]):
            picks.append(FramePick(tick=slots[k].tick, pixels=slots[k].pixels, blocks=chosen[chosen[:, 0] == k, 1]))
        return picks

    def _select_by_hold(self, budget: int) -> npt.NDArray[np.int64]:
        slots = self._slots
        costs = hold_costs(
            np.stack([s.signals.feature_BF for s in slots if s.signals.feature_BF is not None]),
            np.stack([s.sum_BF for s in slots if s.sum_BF is not None]),
            np.stack([s.square_B for s in slots if s.square_B is not None]),
            np.array([s.frames for s in slots], np.float64),
        )
        activity_KB = np.stack([_activity(s.signals) for s in slots])
        seconds_K = np.array([s.tick / self._fps for s in slots])
        return select_evidence(costs, activity_KB, seconds_K, budget=budget, config=self._config.evidence)


def _activity(signals: BlockSignals) -> npt.NDArray[np.float32]:
    """Gray levels and pixels per frame are of one size in practice; an event shows in either."""
    return signals.residual_B + signals.motion_B


def _absorb(
    slot: _Slot, sum_BF: npt.NDArray[np.float64] | None, square_B: npt.NDArray[np.float64] | None, frames: int
) -> None:
    assert slot.sum_BF is not None
    assert slot.square_B is not None
    assert sum_BF is not None
    assert square_B is not None
    slot.sum_BF += sum_BF
    slot.square_B += square_B
    slot.frames += frames
