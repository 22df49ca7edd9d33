"""Synthetic stored samples: frames whose pixels tell their time and place, and blocks chosen by a seeded generator."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ov2_core.config import TokenizerConfig
from ov2_core.storage.commit import commit_shard
from ov2_core.storage.files import Store
from ov2_core.storage.reader import StoredSample
from ov2_core.storage.writer import EncodedSample, canonical_json, committed_sample, encode_sample, write_tar
from ov2_core.tokenized import Group, TokenizedVideo
from schemas.shard import FilteredRow, QuarantineRow
from schemas.tokens import Provenance, SampleRecord
from schemas.video import Message


def draw_frame(t: int, *, rows: int, columns: int, block_px: int) -> np.ndarray:
    """uint8 [H, W, 3]: one flat colour per block, in which t, row and column can be read."""
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    blocks = np.empty((rows, columns, 3), np.uint8)
    blocks[..., 0] = 30 + (t * 5) % 200
    blocks[..., 1] = 50 + 160 * row // rows
    blocks[..., 2] = 50 + 160 * column // columns
    return blocks.repeat(block_px, axis=0).repeat(block_px, axis=1)


def patch_positions(blocks_B3: np.ndarray, *, rows: int, columns: int, merge: int = 2) -> np.ndarray:
    """(t, row, column) of blocks -> (t, h, w) of patches, raster order."""
    t = blocks_B3[:, 0].reshape(rows, columns).repeat(merge, 0).repeat(merge, 1)
    h = (blocks_B3[:, 1] * merge).reshape(rows, columns).repeat(merge, 0).repeat(merge, 1)
    w = (blocks_B3[:, 2] * merge).reshape(rows, columns).repeat(merge, 0).repeat(merge, 1)
    h += np.tile(np.arange(merge)[:, None], (rows, columns * merge))
    w += np.tile(np.arange(merge)[None, :], (rows * merge, columns))
    return np.stack([t, h, w], axis=-1).reshape(-1, 3).astype(np.int32)


def _make_tokenized(
    *,
    num_groups: int = 2,
    rows: int = 3,
    columns: int = 4,
    frames_per_group: int = 20,
    fps: float = 10.0,
    seed: int = 0,
    flags: tuple[str, ...] = (),
) -> TokenizedVideo:
    """Groups of one whole frame and three canvases of blocks drawn without repetition from the group's other frames."""
    block_px, cells = 28, rows * columns
    rng = np.random.default_rng(seed)
    images, positions, groups = [], [], []
    for g in range(num_groups):
        start = g * frames_per_group
        whole = np.array([(start, r, c) for r in range(rows) for c in range(columns)])
        others = np.array(
            [(t, r, c) for t in range(start + 1, start + frames_per_group) for r in range(rows) for c in range(columns)]
        )
        chosen = others[np.sort(rng.choice(len(others), 3 * cells, replace=False))]
        for blocks in (whole, *np.split(chosen, 3)):
            image = np.zeros((rows * block_px, columns * block_px, 3), np.uint8)
            for i, (t, r, c) in enumerate(blocks):
                y, x = i // columns * block_px, i % columns * block_px
                source = draw_frame(int(t), rows=rows, columns=columns, block_px=block_px)
                image[y : y + block_px, x : x + block_px] = source[
                    r * block_px : (r + 1) * block_px, c * block_px : (c + 1) * block_px
                ]
            images.append(image)
            positions.append(patch_positions(blocks, rows=rows, columns=columns))
        groups.append(
            Group(
                first_image=4 * g,
                num_images=4,
                t_start=start,
                t_end=start + frames_per_group,
                num_frames=frames_per_group,
                bit_cost=1 / num_groups,
            )
        )
    total_frames = num_groups * frames_per_group
    return TokenizedVideo(
        images_NHW3=np.stack(images),
        positions_NP3=np.stack(positions),
        fps=fps,
        groups=tuple(groups),
        mode="codec",
        policy="evidence",
        patch_px=14,
        merge=2,
        first_shown_seconds=0.0,
        duration_seconds=total_frames / fps,
        num_source_frames=total_frames,
        codec="h264",
        source_width_px=columns * 40,
        source_height_px=rows * 40,
        frame_bit_cost=np.full(min(total_frames, 512), 1 / min(total_frames, 512), np.float32),
        flags=flags,
    )


def _make_encoded(
    tokenized: TokenizedVideo,
    *,
    key: str = "clip_0",
    video_id: str = "clip 0",
    uri: str = "videos/clip 0.mp4",
    line: int = 1,
    messages: list[Message] | None = None,
) -> EncodedSample:
    default = [Message(role="user", content="Describe this video."), Message(role="assistant", content="A clip.")]
    provenance = Provenance(
        id=video_id,
        uri=uri,
        start_seconds=None,
        end_seconds=None,
        first_shown_seconds=0.0,
        source=None,
        tags=[],
        manifest_line=line,
        size_bytes=1000,
        codec=tokenized.codec,
        width_px=tokenized.source_width_px,
        height_px=tokenized.source_height_px,
        num_frames=tokenized.num_source_frames,
        duration_seconds=tokenized.duration_seconds,
        generator="test",
        config_digest="0" * 16,
    )
    config = TokenizerConfig(policy="evidence", budget=16, area_px=112 * 84)
    return encode_sample(tokenized, key=key, provenance=provenance, messages=messages or default, config=config)


def make_stored(
    *,
    key: str = "clip_0",
    video_id: str = "clip 0",
    uri: str = "videos/clip 0.mp4",
    messages: list[Message] | None = None,
    **shape: Any,
) -> StoredSample:
    encoded = _make_encoded(_make_tokenized(**shape), key=key, video_id=video_id, uri=uri, messages=messages)
    return StoredSample(key=key, tar_name="", members=encoded.members)


@pytest.fixture
def stored_factory() -> Callable[..., StoredSample]:
    return make_stored


@pytest.fixture
def stored() -> StoredSample:
    return make_stored()


@pytest.fixture
def with_record() -> Callable[..., StoredSample]:
    """A stored sample with fields of its record changed."""

    def change(stored: StoredSample, **fields: Any) -> StoredSample:
        record = SampleRecord.model_validate({**stored.record.model_dump(), **fields})
        members = [(name, data) for name, data in stored.members if name != "json"]
        return StoredSample(key=stored.key, tar_name="", members=[*members, ("json", canonical_json(record))])

    return change


@pytest.fixture
def make_tokenized() -> Callable[..., TokenizedVideo]:
    return _make_tokenized


@pytest.fixture
def make_encoded() -> Callable[..., EncodedSample]:
    return _make_encoded


def _make_run(
    store: Store,
    folder: Path,
    encoded: list[EncodedSample],
    *,
    samples_a_shard: int = 2,
    quarantined: tuple[QuarantineRow, ...] = (),
    filtered: tuple[FilteredRow, ...] = (),
    shard_seconds: float = 10.0,
    pause_seconds: float = 0.0,
) -> None:
    """Shards of the samples, committed by the storage layer itself; the last shard carries the rows that fell."""
    chunks = [encoded[i : i + samples_a_shard] for i in range(0, len(encoded), samples_a_shard)]
    for shard, chunk in enumerate(chunks):
        tar = write_tar(folder / f"attempt-{shard}.tar", [(one.key, one.members) for one in chunk])
        samples = [
            committed_sample(one.record, placed, cpu_seconds=2.0, peak_rss_bytes=1 << 20)
            for one, placed in zip(chunk, tar.samples, strict=True)
        ]
        started = 1000.0 + shard * (shard_seconds + pause_seconds)
        last = shard == len(chunks) - 1
        commit_shard(
            store,
            shard=shard,
            tar=tar,
            samples=samples,
            filtered=filtered if last else (),
            quarantined=quarantined if last else (),
            config_digest="0" * 16,
            code_version="test",
            started_unix_seconds=started,
            finished_unix_seconds=started + shard_seconds,
        )


@pytest.fixture
def make_run() -> Callable[..., None]:
    return _make_run
