"""An open group: takes the signals of its frames one by one, in bounded memory, and at its end says which blocks are shown.

At most `most_candidates` of its frames stay candidates: the first (the I-canvas) and one in each slot of time, the most
active of its slot. Slots are equal where the partition has told how many frames will come; of a stream nobody knows, and the
two neighbouring slots that are shortest together become one whenever there is one too many. A group that is short enough keeps
every frame. Any object stands for a frame's pixels; those of frames that fell out are let go.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ov2_core.config import TokenizerConfig
from ov2_core.signals.cells import CELL_STEP
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
    frames: int
    """That it stands for: from the candidate on, inside its slot, and those of lost candidates before it."""
    width: int = 1
    """Frames of the slot."""
    sums: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None
    """[B, F] features and [B] squared norms, summed over `frames`; None: all are as the candidate."""

    @property
    def feature_BF(self) -> npt.NDArray[np.float32]:
        assert self.signals.feature_BF is not None
        return self.signals.feature_BF

    def absorb(self, other: "_Slot") -> None:
        """Hold over the frames of another slot as well."""
        (total_BF, square_B), (more_BF, more_B) = self._summed(), other._summed()
        self.sums = total_BF + more_BF, square_B + more_B
        self.frames += other.frames

    def means(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """[B, F] mean in steps of CELL_STEP, and [B] mean squared norm, less what rounding took from the mean's own."""
        total_BF, square_B = self._summed()
        mean_BF = total_BF / self.frames
        rounded_BF = np.rint(mean_BF / CELL_STEP) * CELL_STEP
        return rounded_BF, square_B / self.frames + (np.square(rounded_BF) - np.square(mean_BF)).sum(axis=1)

    def _summed(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        if self.sums is not None:
            return self.sums
        feature_BF = self.feature_BF.astype(np.float64)
        return feature_BF * self.frames, np.square(feature_BF).sum(axis=1) * self.frames


class OpenGroup:
    """One group while its frames arrive.

    Args:
        num_frames: frames that will be pushed, >= config.groups.min_frames; None: not known, as of a stream.
        num_canvases: that the group fills; None: config.groups.canvases_per_group.
        rows, columns: blocks of a canvas.
        fps: ticks a second.
    """

    def __init__(
        self,
        *,
        num_frames: int | None,
        num_canvases: int | None = None,
        rows: int,
        columns: int,
        fps: float,
        config: TokenizerConfig,
    ) -> None:
        self._num_frames = num_frames
        self._num_blocks, self._columns = rows * columns, columns
        self._fps = fps
        self._config = config
        self._num_canvases = num_canvases or config.groups.canvases_per_group
        most = config.most_candidates(self._num_canvases)
        self._num_slots = most if num_frames is None else min(num_frames, most)
        self._slots: list[_Slot] = []
        self._pushed = 0

    @property
    def num_frames(self) -> int:
        """Pushed so far."""
        return self._pushed

    @property
    def num_held(self) -> int:
        """Frames whose pixels are held."""
        return len(self._slots)

    def push(self, tick: int, signals: BlockSignals, pixels: Callable[[], Any], *, stands_for: int = 1) -> None:
        """Take the next frame. Its pixels are asked for only if it becomes a candidate, and kept while it is one.

        Args:
            stands_for: shown frames from this one up to the next that is pushed.
        """
        assert self._num_frames is None or self._pushed < self._num_frames
        top = min(TOP_BLOCKS, self._num_blocks)
        most = np.sort(
            np.partition(_activity(signals), -top)[-top:]
        )  # CPUs partition, and add up, in orders of their own
        active = most.sum()
        if self._num_frames is None:
            slot = len(self._slots)
        else:
            slot = 0 if self._pushed == 0 else 1 + (self._pushed - 1) * (self._num_slots - 1) // (self._num_frames - 1)
        self._pushed += 1
        new = _Slot(tick, None, signals, float(active), stands_for)
        if slot < len(self._slots):
            self._merge(slot, new)
            if self._slots[slot] is new:
                new.pixels = pixels()
            return
        new.pixels = pixels()
        self._slots.append(new)
        if len(self._slots) > self._num_slots:
            first = min(range(1, len(self._slots) - 1), key=self._loss)
            self._merge(first, self._slots.pop(first + 1))

    def _merge(self, slot: int, following: _Slot) -> None:
        """Join a slot and what follows it; the more active candidate stays, the earlier of equals."""
        current = self._slots[slot]
        current.width += following.width
        evidence = self._config.policy == "evidence"
        if slot > 0 and following.activity > current.activity:
            if evidence:  # what the old candidate stood for is held by the one before it
                self._slots[slot - 1].absorb(current)
            following.width = current.width
            self._slots[slot] = following
        elif evidence:
            current.absorb(following)

    def _loss(self, slot: int) -> tuple[int, float, int]:
        """What joining a slot and the next costs: length, then the activity of the candidate that falls out."""
        here, following = self._slots[slot], self._slots[slot + 1]
        return here.width + following.width, min(here.activity, following.activity), slot

    def close(self) -> list[FramePick]:
        """Select the blocks of the P-canvases.

        Returns:
            Picks in order of time. The first is the group's first frame with all its blocks: the I-canvas; the others hold
            (num_canvases - 1) x rows x columns blocks together.
        """
        assert self._num_frames in (None, self._pushed), f"{self._pushed} of {self._num_frames} frames were pushed"
        config, slots = self._config, self._slots
        budget = (self._num_canvases - 1) * self._num_blocks
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

    def close_whole(self, count: int) -> list[FramePick]:
        """In place of `close`, for a group too short or too dear for its canvases: `count` candidates, each shown whole."""
        every = np.arange(self._num_blocks)
        chosen = (
            np.linspace(0, len(self._slots) - 1, count + 1)[:-1].astype(int)
            if count < len(self._slots)
            else range(count)
        )
        return [FramePick(tick=self._slots[k].tick, pixels=self._slots[k].pixels, blocks=every) for k in chosen]

    def _select_by_hold(self, budget: int) -> npt.NDArray[np.int64]:
        slots = self._slots
        feature_KBF = np.stack([s.feature_BF for s in slots])
        merged = [k for k, slot in enumerate(slots) if slot.sums is not None]
        mean_KBF, square_KB = feature_KBF.copy() if merged else feature_KBF, np.square(feature_KBF).sum(axis=2)
        for k in merged:
            mean_KBF[k], square_KB[k] = slots[k].means()
        costs = hold_costs(
            feature_KBF,
            mean_KBF,
            square_KB,
            np.array([s.frames for s in slots], np.float64),
            structure_share=self._config.evidence.structure_share,
        )
        activity_KB = np.stack([_activity(s.signals) for s in slots])
        seconds_K = np.array([s.tick / self._fps for s in slots])
        return select_evidence(
            costs,
            feature_KBF,
            activity_KB,
            seconds_K,
            columns=self._columns,
            budget=budget,
            config=self._config.evidence,
        )


def _activity(signals: BlockSignals) -> npt.NDArray[np.float32]:
    """Gray levels and pixels per frame are of one size in practice; an event shows in either."""
    return signals.residual_B + signals.motion_B
