"""Groups of a stream: the account is never overdrawn, delay and memory are bounded, nothing depends on what follows."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ov2_core.config import GroupConfig, StreamConfig, TokenizerConfig
from ov2_core.signals.cells import CELL_STEP
from ov2_core.signals.frame import BlockSignals
from ov2_core.tokenizer.gop import bit_cost, spikes
from ov2_core.tokenizer.group import OpenGroup
from ov2_core.tokenizer.stream import GroupStream, StreamAccount, StreamFrame

BLOCKS = 4


def frames_of(seed, count, *, fps=30.0, jitter=0.0, spiky=0.02):
    """An endless-looking stream: costs that wander and jump, keyframes, uneven times."""
    rng = np.random.default_rng(seed)
    seconds, level = 0.0, 1000.0
    for i in range(count):
        if rng.random() < 0.01:
            level = float(rng.uniform(50, 20_000))
        size = level * rng.uniform(0.5, 2) * (12 if rng.random() < spiky else 1)
        signals = BlockSignals(
            motion_B=rng.random(BLOCKS).astype(np.float32),
            residual_B=(rng.random(BLOCKS) * 9).astype(np.float32),
            intra_B=np.zeros(BLOCKS, np.float32),
            feature_BF=np.tile(rng.random((BLOCKS, 4)) * 255, 13)[:, :49].astype(np.float32),
        )
        yield StreamFrame(
            tick=i, seconds=seconds, num_bytes=int(size * (6 if i % 50 == 0 else 1)), keyframe=i % 50 == 0,
            signals=signals, pixels=i,
        )  # fmt: skip
        seconds += (1 + jitter * rng.uniform(-0.9, 3)) / fps


def stream_of(rate=120.0, policy="evidence", **settings_of_stream):
    config = TokenizerConfig(policy=policy, max_candidates=12)
    account = StreamAccount(config=config, stream=StreamConfig(canvases_per_minute=rate, **settings_of_stream))
    return GroupStream(rows=1, columns=BLOCKS, fps=30.0, account=account), account


def run(stream, frames, *, cut=True):
    """(group, number of canvases) in order."""
    closed = [group for frame in frames for group in stream.push(frame)]
    return closed + (stream.cut() if cut else [])


def canvases_in(group):
    return len(group.picks) if group.whole else 4


def plain(group):
    return (
        [(p.tick, p.pixels, p.blocks.tolist()) for p in group.picks], group.whole, group.tick, group.end_tick, group.seconds,
        group.end_seconds, group.num_frames, group.cost_bytes, group.decided_seconds,
    )  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.floats(20, 600), st.floats(0, 1), st.integers(1, 4))
def test_groups_tile_the_stream_within_the_account_and_the_delay(seed, rate, jitter, burst):
    frames = list(frames_of(seed, 700, jitter=jitter))
    stream, account = stream_of(rate, burst_groups=burst)
    closed = run(stream, frames)
    assert closed[0].tick == 0
    for one, two in pairwise(closed):
        assert (one.end_tick, one.end_seconds) == (two.tick, two.seconds)
    assert sum(g.num_frames for g in closed) + account.dropped_frames == len(frames)
    largest_step = max(b.seconds - a.seconds for a, b in pairwise(frames))
    for i, group in enumerate(closed):
        assert group.decided_seconds - group.end_seconds <= 1.0 + largest_step + 1e-9
        ticks = [p.tick for p in group.picks]
        assert ticks == sorted(set(ticks))
        assert group.tick == ticks[0]
        assert ticks[-1] < group.end_tick
        if not group.whole:
            assert sum(len(p.blocks) for p in group.picks) == 4 * BLOCKS
        elif i < len(closed) - 1:
            raise AssertionError("only a rest is shown as whole frames")
    for i in range(len(closed)):  # over any time: at most rate x time and the burst
        for j in range(i, len(closed)):
            given_out = sum(canvases_in(g) for g in closed[i : j + 1])
            span = closed[j].decided_seconds - closed[i - 1].decided_seconds if i else closed[j].decided_seconds
            assert given_out <= rate / 60 * span + burst * 4 - 4 * bool(i) + 1e-6


@pytest.mark.parametrize("policy", ["saliency", "evidence"])
def test_what_is_emitted_does_not_depend_on_what_follows(policy):
    same, other = list(frames_of(1, 400)), list(frames_of(2, 400))
    for at in (37, 150, 222, 301):
        before = run(stream_of(policy=policy)[0], same[:at], cut=False)
        shifted = [
            StreamFrame(
                tick=f.tick + at, seconds=f.seconds + at / 30, num_bytes=f.num_bytes * 50, keyframe=f.keyframe,
                signals=f.signals, pixels=-f.pixels,
            )
            for f in other
        ]  # fmt: skip
        with_same = run(stream_of(policy=policy)[0], same)
        with_other = run(stream_of(policy=policy)[0], [*same[:at], *shifted])
        assert [plain(g) for g in before] == [plain(g) for g in with_same[: len(before)]]
        assert [plain(g) for g in before] == [plain(g) for g in with_other[: len(before)]]
    assert len(before) >= 2


def test_quiet_stretches_get_longer_groups_than_busy_ones():
    frames = list(frames_of(3, 1800, spiky=0))
    frames = [
        StreamFrame(
            tick=f.tick, seconds=f.seconds, num_bytes=9000 if (i // 300) % 2 else 1000, keyframe=False, signals=f.signals,
            pixels=f.pixels,
        )
        for i, f in enumerate(frames)
    ]  # fmt: skip
    closed = run(stream_of(rate=240)[0], frames)
    inside = [(g, (g.tick // 300, (g.end_tick - 1) // 300)) for g in closed if not g.whole]
    quiet = [g.num_frames for g, (a, b) in inside if a == b and a % 2 == 0]
    busy = [g.num_frames for g, (a, b) in inside if a == b and a % 2 == 1]
    assert np.mean(quiet) > 1.3 * np.mean(busy)


def test_a_boundary_snaps_to_a_spike_in_reach_and_no_further():
    def at_spike(spike):
        frames = [
            StreamFrame(
                tick=f.tick, seconds=f.seconds, num_bytes=20_000 if i == spike else 1000, keyframe=False, signals=f.signals,
                pixels=i,
            )
            for i, f in enumerate(frames_of(4, 200))
        ]  # fmt: skip
        return run(stream_of(rate=120)[0], frames)[0].end_tick

    assert at_spike(1000) == 60, "no spike: a group's time is 2 s"
    for spike in (53, 55, 60, 64, 67):  # an eighth of it is 7.5 frames
        assert at_spike(spike) == spike
    for spike in (68, 75):
        assert at_spike(spike) == 60
    assert at_spike(20) > 50


def test_an_endless_stream_is_held_in_the_memory_of_one_group():
    stream, account = stream_of(rate=30)
    most, canvases = 0, 0
    for frame in frames_of(5, 8_000, fps=60.0):
        canvases += sum(canvases_in(g) for g in stream.push(frame))
        most = max(most, stream.num_held)
    assert most <= 12 + 2 * 0.5 * 60 + 2
    assert canvases <= 8_000 / 60 / 60 * 30 + 8
    assert canvases >= 0.6 * 8_000 / 60 / 60 * 30, "and the rate is spent"
    assert account.dropped_frames == 0


def test_many_cuts_do_not_overdraw_the_account():
    frames = list(frames_of(6, 600))
    _, account = stream_of(rate=60)
    given_out = 0
    for at in range(0, 600, 5):
        stretch = GroupStream(rows=1, columns=BLOCKS, fps=30.0, account=account)
        given_out += sum(canvases_in(g) for g in run(stretch, frames[at : at + 5]))
    assert given_out <= 600 / 30 + 8
    assert account.dropped_frames > 0
    assert account.canvases >= 0


def test_a_short_rest_is_one_whole_frame():
    stream, _ = stream_of(rate=120)
    closed = run(stream, list(frames_of(7, 65, spiky=0)))
    assert closed[-1].whole
    assert [len(p.blocks) for p in closed[-1].picks] == [BLOCKS]


def test_the_first_cost_of_a_stream_does_not_count_its_keyframe():
    _, account = stream_of()
    sizes = [(100_000, True), *[(1000, False)] * 20, (90_000, True)]
    costs = [account.frame_cost(*s) for s in sizes]
    assert costs[1:] == [1000.0] * 21
    whole = bit_cost(np.array([s[0] for s in sizes]), np.array([s[1] for s in sizes]), window_frames=61)
    assert costs[-1] == whole[-1]
    assert spikes(whole, window_frames=61).max() == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 80), st.integers(4, 10), st.sampled_from(["saliency", "evidence"]), st.integers(0, 999))
def test_a_group_of_unknown_length_keeps_its_most_active_frame_and_all_sums(count, most, policy, seed):
    config = TokenizerConfig(policy=policy, max_candidates=most)
    frames = list(frames_of(seed, count))
    group = OpenGroup(num_frames=None, rows=1, columns=BLOCKS, fps=30.0, config=config)
    for frame in frames:
        group.push(frame.tick, frame.signals, partial(getattr, frame, "pixels"))
        assert group.num_held <= most
    slots = group._slots
    assert len(slots) == min(count, most)
    assert sum(s.width for s in slots) == count
    activity = [float(np.sort(f.signals.residual_B + f.signals.motion_B).sum()) for f in frames]
    assert max(s.tick for s in slots) <= count - 1
    assert 1 + int(np.argmax(activity[1:])) in [s.tick for s in slots]
    if policy == "evidence":
        edges = [*(s.tick for s in slots), count]
        for slot, low, high in zip(slots, edges, edges[1:], strict=False):
            shown = np.stack([f.signals.feature_BF.astype(np.float64) for f in frames[low:high]])
            assert slot.frames == high - low
            mean, square = slot.means()
            assert np.abs(mean - shown.mean(axis=0)).max() <= CELL_STEP / 2
            variance = np.square(shown).sum(axis=2).mean(axis=0) - np.square(shown.mean(axis=0)).sum(axis=1)
            np.testing.assert_allclose(square - np.square(mean).sum(axis=1), variance, atol=1e-6 * square.max())
    known = OpenGroup(num_frames=count, rows=1, columns=BLOCKS, fps=30.0, config=config)
    for frame in frames:
        known.push(frame.tick, frame.signals, partial(getattr, frame, "pixels"))
    one, two = group.close(), known.close()
    assert sum(len(p.blocks) for p in one) == sum(len(p.blocks) for p in two) == 4 * BLOCKS
    if count <= most:
        assert [(p.tick, p.blocks.tolist()) for p in one] == [(p.tick, p.blocks.tolist()) for p in two]


def test_stream_configs_that_cannot_be_met_name_their_field():
    for name, value in (
        ("canvases_per_minute", 0), ("canvases_per_minute", float("nan")), ("canvases_per_minute", float("inf")),
        ("burst_groups", 0), ("cost_memory_seconds", -1), ("max_reach_seconds", 0.8), ("max_reach_seconds", float("nan")),
        ("max_gap_seconds", 0), ("max_jump_seconds", 1.0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=name):
            StreamConfig(**{name: value})
    assert GroupConfig().canvases_per_group * StreamConfig().burst_groups == 8
