"""Synthetic stored samples: frames whose pixels tell their time and place, and blocks chosen by a seeded generator."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from schemas.tokens import GroupRecord, Provenance, SampleRecord
from schemas.video import Message


@dataclass(frozen=True)
class FakeStored:
    key: str
    record: SampleRecord
    jpegs: tuple[bytes, ...]
    positions: tuple[np.ndarray, ...]


def draw_frame(t: int, *, rows: int, columns: int, block_px: int) -> np.ndarray:
    """uint8 [H, W, 3]: one flat colour per block, in which t, row and column can be read."""
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    blocks = np.empty((rows, columns, 3), np.uint8)
    blocks[..., 0] = 30 + (t * 5) % 200
    blocks[..., 1] = 50 + 160 * row // rows
    blocks[..., 2] = 50 + 160 * column // columns
    return blocks.repeat(block_px, axis=0).repeat(block_px, axis=1)


def to_jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    return buffer.getvalue()


def patch_positions(blocks_B3: np.ndarray, *, rows: int, columns: int, merge: int = 2) -> np.ndarray:
    """(t, row, column) of blocks -> (t, h, w) of patches, raster order."""
    t = blocks_B3[:, 0].reshape(rows, columns).repeat(merge, 0).repeat(merge, 1)
    h = (blocks_B3[:, 1] * merge).reshape(rows, columns).repeat(merge, 0).repeat(merge, 1)
    w = (blocks_B3[:, 2] * merge).reshape(rows, columns).repeat(merge, 0).repeat(merge, 1)
    h += np.tile(np.arange(merge)[:, None], (rows, columns * merge))
    w += np.tile(np.arange(merge)[None, :], (rows * merge, columns))
    return np.stack([t, h, w], axis=-1).reshape(-1, 3).astype(np.int32)


def make_stored(
    *,
    key: str = "clip_0",
    video_id: str = "clip 0",
    num_groups: int = 2,
    rows: int = 3,
    columns: int = 4,
    frames_per_group: int = 20,
    fps: float = 10.0,
    messages: list[Message] | None = None,
    seed: int = 0,
    flags: tuple[str, ...] = (),
    uri: str = "videos/clip 0.mp4",
    line: int = 1,
) -> FakeStored:
    block_px, cells = 28, rows * columns
    rng = np.random.default_rng(seed)
    jpegs, positions, groups = [], [], []
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
            jpegs.append(to_jpeg(image))
            positions.append(patch_positions(blocks, rows=rows, columns=columns))
        groups.append(
            GroupRecord(
                first_image=4 * g,
                num_images=4,
                t_start=start,
                t_end=start + frames_per_group,
                num_frames=frames_per_group,
                bit_cost=1 / num_groups,
            )
        )
    total_frames = num_groups * frames_per_group
    record = SampleRecord(
        messages=messages
        or [
            Message(role="user", content="Describe this video."),
            Message(role="assistant", content="A clip."),
        ],
        image_keys=[f"img_{i:03d}.jpg" for i in range(len(jpegs))],
        patch_positions_keys=[f"patch_positions_{i:03d}.npy" for i in range(len(jpegs))],
        fps=fps,
        timestamp_decimal=1,
        media="video",
        mode="codec",
        policy="evidence",
        image_width_px=columns * block_px,
        image_height_px=rows * block_px,
        patch_px=14,
        merge=2,
        num_tokens=len(jpegs) * cells,
        token_budget=2 * len(jpegs) * cells,
        groups=groups,
        frame_bit_cost=[1 / total_frames] * total_frames,
        flags=list(flags),
        positions_digest="0" * 64,
        provenance=Provenance(
            id=video_id,
            uri=uri,
            start_seconds=None,
            end_seconds=None,
            first_shown_seconds=0.0,
            source=None,
            tags=[],
            manifest_line=line,
            size_bytes=1000,
            codec="h264",
            width_px=columns * 40,
            height_px=rows * 40,
            num_frames=total_frames,
            duration_seconds=total_frames / fps,
            generator="test",
            config_digest="0" * 16,
        ),
    )
    return FakeStored(key, record, tuple(jpegs), tuple(positions))


@pytest.fixture
def stored_factory() -> Callable[..., FakeStored]:
    return make_stored


@pytest.fixture
def stored() -> FakeStored:
    return make_stored()
