"""Streams from files, pipes, objects and HTTP: every block is bound to its source, whatever the source does to us."""

import http.server
import io
import os
import threading
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from ov2_core.config import StreamConfig, TokenizerConfig, recipe
from ov2_core.errors import BadItemError
from ov2_core.evals.clips import read_canary, write_canary_clip, write_clip, write_rope_clip
from ov2_core.evals.odd_clips import ODDITIES, write_odd_clip
from ov2_core.media.decode import DecodeStats, decode_frames
from ov2_core.media.live import AnchorQueue, LiveStatus, live_frames, open_live
from ov2_core.media.probe import probe_video
from ov2_core.tokenize_stream import StreamStats, join_groups, tokenize_stream
from ov2_core.tokenize_video import tokenize_video
from ov2_core.tokenizer.memory import MemoryConfig, StreamMemory

CONFIG = TokenizerConfig(policy="evidence", area_px=140 * 140)
FAST = StreamConfig(canvases_per_minute=240)
"""A group a second."""


def stream(source, *, config=CONFIG, rate=FAST, **options):
    stats = StreamStats()
    return list(tokenize_stream(source, config, rate, stats=stats, **options)), stats


def same(one, two):
    """Equal in all but how late they were emitted."""
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert (a.images_NHW3 == b.images_NHW3).all()
        assert (a.positions_NP3 == b.positions_NP3).all()
        assert (a.start_seconds, a.end_seconds, a.num_frames, a.fps) == (
            b.start_seconds,
            b.end_seconds,
            b.num_frames,
            b.fps,
        )


def canaries(group):
    """(t, what the block says of itself, its row and column by position) of every block."""
    rows, columns = group.images_NHW3.shape[1] // 28, group.images_NHW3.shape[2] // 28
    for image, position in zip(group.images_NHW3, group.positions_NP3, strict=True):
        grid = position.reshape(rows, 2, columns, 2, 3)[:, 0, :, 0]
        for r in range(rows):
            for c in range(columns):
                t, h, w = grid[r, c].tolist()
                yield t, read_canary(image[r * 28 : r * 28 + 28, c * 28 : c * 28 + 28]), h // 2, w // 2


@pytest.fixture(scope="module")
def transport(tmp_path_factory):
    """Bytes of an MPEG-TS clip of 6 s with B frames."""
    path = tmp_path_factory.mktemp("ts") / "rope.ts"
    write_rope_clip(path, seed=5, seconds=6, width_px=224, height_px=168, camera="panning", gop_frames=30)
    return path.read_bytes()


class Endless:
    """A readable object that never ends: the same bytes again and again."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def read(self, size):
        part = self.data[self.at : self.at + size]
        self.at = (self.at + len(part)) % len(self.data)
        return part


def fed(pieces):
    """The reading end of a pipe into which a thread writes; a number is a pause in seconds, None leaves the pipe open."""
    reading, writing = os.pipe()

    def write():
        try:
            for piece in pieces:
                if piece is None:
                    return
                if isinstance(piece, float):
                    time.sleep(piece)
                    continue
                view = memoryview(piece)
                while view:
                    view = view[os.write(writing, view) :]
        except BrokenPipeError:
            pass
        os.close(writing)

    threading.Thread(target=write, daemon=True).start()
    return reading, writing


def named(descriptor):
    return f"/proc/self/fd/{descriptor}"


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="opens a pipe by its name in /proc")


@pytest.mark.parametrize("name", sorted(ODDITIES))
def test_stream_binds_every_block_of_odd_clips(tmp_path, name):
    clip = write_odd_clip(name, tmp_path)
    config = TokenizerConfig(policy="saliency" if len(name) % 2 else "evidence")
    if clip.refused_as and clip.num_frames == 0:
        with pytest.raises(BadItemError) as caught:
            stream(str(clip.path), config=config)
        assert caught.value.reason in clip.refused_as
        return
    groups, stats = stream(str(clip.path), config=config)
    assert groups
    if clip.num_frames is not None:
        assert sum(g.num_frames for g in groups) == clip.num_frames == stats.num_frames
    if clip.video_id is None:
        return
    for group in groups:
        seen = {}
        for t, canary, row, column in canaries(group):
            assert (canary.video_id, canary.row, canary.column) == (clip.video_id, row, column)
            assert seen.setdefault(t, canary.frame) == canary.frame
        if clip.pts_seconds:
            for t, frame in seen.items():
                shown = clip.pts_seconds[frame] - clip.pts_seconds[0]
                assert group.start_seconds + t / group.fps == pytest.approx(shown, abs=0.02)


@pytest.mark.parametrize("policy", ["saliency", "evidence"])
def test_a_stream_of_few_frames_is_tokenized_as_the_clip(tmp_path, policy):
    """One group, every frame a candidate: nothing is left that streaming could do otherwise."""
    write_rope_clip(tmp_path / "clip.mp4", seed=3, seconds=1, width_px=224, height_px=168)
    config = TokenizerConfig(policy=policy, budget=4, max_step_seconds=0)
    groups, _ = stream(str(tmp_path / "clip.mp4"), config=config, rate=StreamConfig(canvases_per_minute=180))
    joined, clip = join_groups(groups), tokenize_video(str(tmp_path / "clip.mp4"), config)
    assert len(groups) == 1
    assert not groups[0].whole
    assert joined.fps == clip.fps
    assert (joined.images_NHW3 == clip.images_NHW3).all()
    assert (joined.positions_NP3 == clip.positions_NP3).all()


def test_live_frames_know_their_anchors_bytes_and_times_as_a_probe_does(tmp_path):
    path = tmp_path / "b.mp4"
    write_rope_clip(path, seed=1, seconds=3, width_px=160, height_px=120)
    probe = probe_video(str(path))
    assert probe.anchor_distance_T2[:, 1].max() >= 2, "the clip has B frames"
    queue, found, frames = AnchorQueue(), [], []
    with open_live(str(path), timeout_seconds=5) as (container, video):
        for live in live_frames(container, video, stats=DecodeStats(), status=LiveStatus()):
            live.frame = None
            frames.append(live)
            found += queue.push(live, anchor=live.anchor)
    found += queue.flush()
    assert [item.stamp for item, _, _ in found] == [f.stamp for f in frames]
    assert np.array([(b, a) for _, b, a in found]).tolist() == probe.anchor_distance_T2.tolist()
    assert [f.num_bytes for f in frames] == probe.frame_bytes_T.tolist()
    assert [f.keyframe for f in frames] == probe.keyframe_T.tolist()
    times = [float(f.stamp * f.time_base) for f in frames]
    assert np.allclose(np.array(times) - times[0], probe.seconds_T)
    assert sum(1 for _ in decode_frames(str(path), probe, stats=DecodeStats())) == len(frames)


def test_groups_come_within_two_seconds_and_in_one_piece(transport, tmp_path):
    groups, stats = stream(io.BytesIO(transport))
    assert len(groups) >= 4
    assert stats.status.ended == "end"
    assert max(g.emitted_seconds - g.end_seconds for g in groups) <= 2
    assert sum(g.num_frames for g in groups) == stats.num_frames == 180
    for one, two in pairwise(groups):
        assert one.end_seconds == two.start_seconds
    path = tmp_path / "same.ts"
    path.write_bytes(transport)
    same(groups, stream(str(path))[0])
    joined = join_groups(groups)
    assert joined.num_source_frames == 180
    assert joined.positions_NP3[..., 0].max() < 180
    assert sum(g.bit_cost for g in joined.groups) == pytest.approx(1)


@needs_proc
def test_a_pipe_that_stalls_gives_what_the_file_gives(transport):
    third = len(transport) // 3
    reading, _ = fed([transport[:third], 0.15, transport[third : 2 * third + 7], 0.15, transport[2 * third + 7 :]])
    try:
        groups, stats = stream(named(reading), timeout_seconds=5)
    finally:
        os.close(reading)
    same(groups, stream(io.BytesIO(transport))[0])
    assert stats.status.ended == "end"


@needs_proc
def test_a_pipe_that_falls_silent_ends_the_stream_with_all_that_came(transport):
    whole, _ = stream(io.BytesIO(transport))
    reading, writing = fed([transport[: len(transport) * 2 // 3], None])
    began = time.monotonic()
    try:
        groups, stats = stream(named(reading), timeout_seconds=0.4)
    finally:
        os.close(reading)
        os.close(writing)
    assert time.monotonic() - began < 5
    assert stats.status.ended == "stalled"
    assert "0.4 s" in stats.status.message
    assert len(groups) >= 3
    same(groups[:-1], whole[: len(groups) - 1])


@needs_proc
def test_a_silent_pipe_is_refused_in_time():
    reading, writing = os.pipe()
    began = time.monotonic()
    with pytest.raises(BadItemError, match=r"no data within 0\.3 s") as caught:
        stream(named(reading), timeout_seconds=0.3)
    assert caught.value.reason == "transient_error"
    assert time.monotonic() - began < 3
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("share", [0.31, 0.5, 0.777])
def test_what_is_emitted_of_a_prefix_stays(transport, share):
    """A source cut anywhere, in the middle of a frame too: its groups but the last rest are those of the whole."""
    whole, _ = stream(io.BytesIO(transport))
    groups, stats = stream(io.BytesIO(transport[: int(len(transport) * share)]))
    certain = [g for g in groups if g.emitted_seconds > g.end_seconds]
    assert len(certain) >= 1
    same(certain, whole[: len(certain)])
    assert len(groups) - len(certain) <= 2
    assert stats.status.ended == "end"


def test_a_gap_ends_the_group_and_time_goes_on(tmp_path):
    path = tmp_path / "gap.mkv"
    pts = [i / 30 + (7.0 if i >= 50 else 0.0) for i in range(100)]
    write_canary_clip(path, video_id=5, num_frames=100, fps=30, pts_seconds=pts)
    groups, stats = stream(str(path), config=TokenizerConfig(policy="evidence"))
    assert stats.gaps == 1
    assert {g.stretch for g in groups} == {0, 1}
    for group in groups:
        assert group.end_seconds <= 50 / 30 + 0.05 or group.start_seconds >= 50 / 30 + 7 - 0.05
        for t, canary, _, _ in canaries(group):
            assert group.start_seconds + t / group.fps == pytest.approx(pts[canary.frame], abs=0.02)


def test_clocks_that_start_again_go_on_one_frame_later(tmp_path):
    parts = []
    for number in range(3):
        write_canary_clip(tmp_path / f"{number}.ts", video_id=10 + number, num_frames=50, fps=25)
        parts.append((tmp_path / f"{number}.ts").read_bytes())
    groups, stats = stream(io.BytesIO(b"".join(parts)), config=TokenizerConfig(policy="evidence"))
    assert stats.new_clocks == 2
    assert stats.num_frames >= 3 * 50 - 4
    for group in groups:
        assert {canary.video_id for _, canary, _, _ in canaries(group)} == {10 + group.stretch}
        for t, canary, _, _ in canaries(group):
            shown = (group.stretch * 50 + canary.frame) / 25
            assert group.start_seconds + t / group.fps == pytest.approx(shown, abs=0.15)
    assert [g.start_seconds for g in groups] == sorted(g.start_seconds for g in groups)


def test_a_change_of_resolution_ends_the_group(tmp_path):
    parts, at = [], 0.0
    for number, (width, height) in enumerate([(224, 168), (168, 224), (168, 224)]):
        path = tmp_path / f"{number}.ts"
        times = [at + i / 25 for i in range(60)]
        frames = (np.full((height, width, 3), 40 + i, np.uint8) for i in range(60))
        write_clip(path, frames, fps=25, pts_seconds=times)
        parts.append(path.read_bytes())
        at += 60 / 25
    groups, stats = stream(io.BytesIO(b"".join(parts)))
    assert stats.new_sizes == 1
    shapes = [g.images_NHW3.shape[1:3] for g in groups]
    turned = [s[0] > s[1] for s in shapes]
    assert turned == sorted(turned)
    assert 0 < sum(turned) < len(turned)
    assert sum(g.num_frames for g in groups) == stats.num_frames >= 170
    with pytest.raises(ValueError, match="cannot be joined"):
        join_groups(groups)


def test_an_endless_source_is_held_in_bounded_memory(tmp_path):
    path = tmp_path / "loop.h264"
    write_rope_clip(path, seed=2, seconds=1, width_px=112, height_px=84)
    held = []
    for seconds in (10, 30):
        stats = StreamStats()
        count = 0
        config = TokenizerConfig(policy="evidence", area_px=56 * 84, max_candidates=24)
        rate = StreamConfig(canvases_per_minute=60)
        memory = StreamMemory(MemoryConfig(token_budget=200, horizon_seconds=3600))
        endless = tokenize_stream(Endless(path.read_bytes()), config, rate, max_seconds=float(seconds), stats=stats)
        for group in endless:
            count += len(group.images_NHW3)
            memory.add(
                group.images_NHW3,
                group.positions_NP3,
                start_seconds=group.start_seconds,
                end_seconds=group.end_seconds,
                fps=group.fps,
                patch_px=group.patch_px,
                merge=group.merge,
            )
            assert memory.num_tokens <= 200
        assert count <= seconds + 8
        assert stats.num_frames > seconds * 20
        held.append(stats.max_held_frames)
    assert held[0] == held[1] <= 24 + 64


def test_an_http_source_that_dribbles_and_one_that_falls_silent(transport):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404 if "nowhere" in self.path else 200)
            self.end_headers()
            if "nowhere" in self.path:
                return
            try:
                half = len(transport) * 2 // 3
                self.wfile.write(transport[:half])
                self.wfile.flush()
                if "silent" in self.path:
                    stop.wait(8)
                else:
                    time.sleep(0.2)
                    self.wfile.write(transport[half:])
            except OSError:
                pass

        def log_message(self, *_):
            pass

    stop = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        whole, _ = stream(io.BytesIO(transport))
        same(stream(f"{base}/live.ts", timeout_seconds=5)[0], whole)
        groups, stats = stream(f"{base}/silent.ts", timeout_seconds=0.5)
        assert stats.status.ended == "stalled"
        assert len(groups) >= 3
        with pytest.raises(BadItemError) as caught:
            stream(f"{base}/nowhere.ts", timeout_seconds=5)
        assert caught.value.reason == "source_missing"
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_what_cannot_be_streamed_is_refused_before_it_is_opened(tmp_path):
    for name in ("uniform-8", "stills"):
        with pytest.raises(ValueError, match="mode"):
            tokenize_stream("nowhere.mp4", recipe(name).tokenizer, FAST)
    joined = replace(CONFIG, groups=replace(CONFIG.groups, max_canvases_per_group=8))
    with pytest.raises(ValueError, match=r"groups\.max_canvases_per_group"):
        tokenize_stream("nowhere.mp4", joined, FAST)
    for name in ("timeout_seconds", "max_seconds"):
        for value in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=name):
                tokenize_stream("nowhere.mp4", CONFIG, FAST, **{name: value})
    for source, reason in (
        (str(tmp_path / "nowhere.mp4"), "source_missing"),
        ("gopher://a/b", "refused_uri"),
        ("concat:a|b", "not_media"),
        (str(tmp_path), "not_media"),
        (io.BytesIO(b"no video at all" * 100), "not_media"),
        (io.BytesIO(b""), "not_media"),
    ):
        with pytest.raises(BadItemError) as caught:
            stream(source)
        assert caught.value.reason == reason, source


def test_a_playlist_is_not_followed(tmp_path):
    write_canary_clip(tmp_path / "secret.mp4", video_id=1, num_frames=8)
    for name, text in {
        "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n",
        "b.mp4": f"ffconcat version 1.0\nfile '{tmp_path}/secret.mp4'\n",
        "c.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(BadItemError):
            stream(str(tmp_path / name), timeout_seconds=0.5)
