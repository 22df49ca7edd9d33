"""Every kind of input to model inputs: counts, places, groups, one coordinate system, batches, files of the processor."""

import io
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from ov2_core.config import TextConfig, recipe
from ov2_core.data.messages import to_messages
from ov2_core.errors import BadItemError
from ov2_core.evals.clips import read_canary, write_canary_clip
from ov2_core.model.attention import group_lengths
from ov2_core.model.batch import EncodedSample
from ov2_core.model.byte_tokenizer import SPECIAL_IDS, byte_tokenizer
from ov2_core.model.chatml import IGNORE_INDEX, parse_ticks
from ov2_core.model.patches import PIXEL_MEAN, PIXEL_STD, patchify
from ov2_core.model.processor import LlavaOnevision2Processor
from ov2_core.model.processor_config import ProcessorConfig
from ov2_core.model.visual import attend_alone, join_groups, show_frames, show_still, show_tokenized, split_stills
from ov2_core.storage.reader import StoredSample
from ov2_core.storage.writer import encode_sample
from ov2_core.tokenize_video import tokenize_video
from ov2_core.tokenized import TokenizedVideo
from schemas.tokens import Provenance
from schemas.video import ManifestRow

COLUMNS, ROWS, FPS = 5, 4, 10.0


@pytest.fixture(scope="module")
def processor() -> LlavaOnevision2Processor:
    return LlavaOnevision2Processor(byte_tokenizer())


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 frames at 10 a second; each block of 28 px says its frame, row and column."""
    path = tmp_path_factory.mktemp("canary") / "canary.mp4"
    write_canary_clip(path, video_id=9, num_frames=48, fps=FPS, columns=COLUMNS, rows=ROWS)
    return path


@pytest.fixture(scope="module")
def codec(canary: Path) -> TokenizedVideo:
    return tokenize_video(str(canary), recipe("codec-8").tokenizer)


def store(tokenized: TokenizedVideo, *, caption: str | None = "A canary.") -> StoredSample:
    """The sample as a shard would hold it."""
    row = ManifestRow(video="x.mp4", caption=caption)
    provenance = Provenance(
        id="x", uri="x.mp4", start_seconds=None, end_seconds=None, first_shown_seconds=0.0, source=None, tags=[], manifest_line=1,
        size_bytes=1, codec="h264", width_px=140, height_px=112, num_frames=48, duration_seconds=4.8, generator="t",
        config_digest="0",
    )  # fmt: skip
    config = recipe("codec-8").tokenizer
    encoded = encode_sample(
        tokenized, key="x", provenance=provenance, messages=to_messages(row, TextConfig()), config=config
    )
    return StoredSample(key="x", tar_name="t", members=encoded.members)


def blocks_of(sample: EncodedSample) -> np.ndarray:
    """[K, 28, 28, 3] uint8: each merged token's pixels, put together again."""
    assert sample.vision is not None
    pixels = sample.vision.pixel_values.numpy().reshape(-1, 2, 2, 3, 14, 14).transpose(0, 1, 4, 2, 5, 3)
    pixels = pixels.reshape(-1, 28, 28, 3) * np.array(PIXEL_STD) + np.array(PIXEL_MEAN)
    return np.rint(pixels * 255).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["codec-8", "uniform-7", "evidence-8"])
def test_every_token_shows_the_block_that_its_position_names(processor: Any, canary: Path, name: str) -> None:
    """Codec canvases and frames of one video share one coordinate system, pixels and timestamps included."""
    sample = processor.encode(str(canary), prompt="When?", recipe=name)
    positions = sample.vision.patch_positions.reshape(-1, 4, 3)
    read = [read_canary(block) for block in blocks_of(sample)]
    assert [canary.frame for canary in read] == positions[:, 0, 0].tolist()
    assert [(canary.row * 2, canary.column * 2) for canary in read] == [tuple(p) for p in positions[:, 0, 1:].tolist()]
    offsets = positions - positions[:, :1]
    assert (offsets == torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]])).all()


@pytest.mark.parametrize("name", ["codec-8", "uniform-7"])
def test_visual_tokens_are_the_merged_patches_and_runs_their_times(processor: Any, canary: Path, name: str) -> None:
    decimals = 2
    tokenized = tokenize_video(str(canary), recipe(name).tokenizer)
    sample = processor.encode(show_tokenized(tokenized, timestamp_decimal=decimals), prompt="When?")
    ids = sample.input_ids
    assert (
        int((ids == SPECIAL_IDS["<|image_pad|>"]).sum()) == tokenized.num_tokens == len(sample.vision.pixel_values) // 4
    )
    text = processor.describe(sample)
    lengths = [int(part.split("<|vision_end|>")[0]) for part in text.split("<|image_pad|>*")[1:]]
    ticks = parse_ticks(text, FPS)
    assert np.repeat(ticks, lengths).tolist() == sample.vision.patch_positions[::4, 0].tolist()
    assert all(a != b for a, b in pairwise(ticks)), "runs are maximal"


def test_a_token_shard_sample_equals_its_video(processor: Any, codec: TokenizedVideo) -> None:
    stored = store(codec)
    sample = processor.encode(stored)
    fresh = processor.encode(codec, messages=stored.record.messages)
    assert torch.equal(sample.input_ids, fresh.input_ids)
    assert torch.equal(sample.labels, fresh.labels)
    assert torch.equal(sample.vision.patch_positions, fresh.vision.patch_positions)
    assert torch.equal(sample.vision.patch_group_lengths, fresh.vision.patch_group_lengths)
    assert (sample.vision.pixel_values - fresh.vision.pixel_values).abs().mean() < 0.1, "equal but for JPEG"
    answer = sample.labels[sample.labels != IGNORE_INDEX]
    assert processor.tokenizer.decode(answer) == "A canary.<|im_end|>"
    asked = processor.encode(stored, for_generation=True)
    assert torch.equal(asked.input_ids, sample.input_ids[: len(asked.input_ids)])


def test_a_sample_without_text_needs_a_prompt(processor: Any, codec: TokenizedVideo) -> None:
    stored = store(codec, caption=None)
    with pytest.raises(ValueError, match="no text"):
        processor.encode(stored)
    assert "What?" in processor.describe(processor.encode(stored, prompt="What?"))


def test_stills_are_groups_of_their_own_without_time(processor: Any) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (height, 70, 3), dtype=np.uint8) for height in (56, 100)]
    sample = processor.encode([Image.fromarray(images[0]), images[1]], prompt="Which?")
    assert sample.vision.image_grid_thw.tolist() == [[1, 4, 4], [1, 6, 4]]
    assert sample.vision.patch_group_lengths.tolist() == [16, 24]
    assert (sample.vision.patch_positions[:, 0] == 0).all()
    assert "seconds" not in processor.describe(sample)


def test_a_still_of_grid_size_keeps_its_pixels(processor: Any, tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "still.png")
    want = patchify([image], num_patches=24, patch_px=14, merge=2)
    for medium in (image, Image.fromarray(image), tmp_path / "still.png", str(tmp_path / "still.png")):
        assert torch.equal(processor.encode(medium, prompt="?").vision.pixel_values, want)


@pytest.mark.parametrize(
    ("group_images", "rows"),
    [
        ((4, 4, 2), [10]),
        ((4,), [4]),
        ((3,), [3]),
        ((1, 1, 1), [1, 1, 1]),
        ((2, 4, 4, 1, 4), [2, 9, 4]),
        ((4, 4, 4), [12]),
    ],
)
def test_grid_rows_give_readers_the_recorded_groups(group_images: tuple[int, ...], rows: list[int]) -> None:
    assert join_groups(group_images, 4) == rows
    grid = [(count, 2, 4) for count in rows]
    assert group_lengths(grid, frame_windows_size=4) == [count * 8 for count in group_images]


@pytest.mark.parametrize("budget", [1, 4, 7, 8])
@pytest.mark.parametrize("kind", ["codec", "uniform"])
def test_groups_of_recipes_are_what_windows_of_four_give(processor: Any, canary: Path, kind: str, budget: int) -> None:
    if kind == "codec" and budget < 4:
        budget = 4
    batch = processor(str(canary), prompt="?", recipe=f"{kind}-{budget}")
    assert batch.windows_are_groups
    assert "patch_group_lengths" not in list(batch)
    want = group_lengths(batch.image_grid_thw.tolist(), frame_windows_size=4)
    assert want == batch.patch_group_lengths.tolist()


def test_groups_wider_than_the_window_are_told_to_the_model(processor: Any, codec: TokenizedVideo) -> None:
    wide = replace(codec, groups=(replace(codec.groups[0], num_images=8, first_image=0),))
    batch = processor(wide, prompt="?")
    assert not batch.windows_are_groups
    assert batch["patch_group_lengths"].tolist() == [8 * ROWS * COLUMNS * 4]
    assert LlavaOnevision2Processor(byte_tokenizer(), ProcessorConfig(window_images=8))(
        wide, prompt="?"
    ).windows_are_groups


def test_images_may_attend_alone(processor: Any, codec: TokenizedVideo) -> None:
    visual = show_tokenized(codec)
    alone, grouped = (processor(v, prompt="?") for v in (attend_alone(visual), visual))
    assert alone.windows_are_groups
    assert alone.image_grid_thw.tolist() == [[1, 8, 10]] * 8
    for name in ("input_ids", "pixel_values", "patch_positions"):
        assert torch.equal(alone[name], grouped[name])


def test_frames_with_ticks_are_a_video(processor: Any) -> None:
    frames = np.random.default_rng(2).integers(0, 256, (5, 28, 56, 3), dtype=np.uint8)
    visual = show_frames(frames, ticks=[0, 3, 6, 9, 12], fps=6.0)
    sample = processor.encode(visual, prompt="?")
    assert sample.vision.image_grid_thw.tolist() == [[5, 2, 4]]
    assert sample.vision.patch_group_lengths.tolist() == [32, 8]
    assert "<0.5 seconds><|vision_start|><|image_pad|>*2<|vision_end|>\n<1.0 seconds>" in processor.describe(sample)
    stills = split_stills(visual)
    apart = processor.encode(stills, prompt="?")
    assert torch.equal(apart.vision.pixel_values, sample.vision.pixel_values)
    assert apart.vision.patch_group_lengths.tolist() == [8] * 5
    with pytest.raises(ValueError, match="ascend"):
        show_frames(frames, ticks=[0, 1, 2, 3, 3], fps=6.0)


def test_misaligned_placeholders_raise_with_both_counts(processor: Any) -> None:
    still = show_still(np.zeros((28, 28, 3), np.uint8))
    for text, media, counts in (("<image>\n<image>\n?", [still], "2 .* 1"), ("?", [still, still], "0 .* 2")):
        with pytest.raises(ValueError, match=f"^{counts} media"):
            processor.encode(media, messages=[{"role": "user", "content": text}])


def test_media_of_another_patch_size_are_refused(processor: Any) -> None:
    with pytest.raises(ValueError, match=r"patches of 16 px .* 14 px"):
        processor.encode(show_still(np.zeros((32, 32, 3), np.uint8), patch_px=16), prompt="?")
    with pytest.raises(ValueError, match="got int"):
        processor.encode(3, prompt="?")


def test_unreadable_files_are_named(processor: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    (tmp_path / "bad.png").write_bytes(b"no image")
    for name in ("bad.mp4", "bad.png", "absent.mp4"):
        with pytest.raises(BadItemError, match=name):
            processor.encode(tmp_path / name, prompt="?")


def test_batches_pad_text_and_join_vision(processor: Any, codec: TokenizedVideo) -> None:
    still = np.zeros((28, 28, 3), np.uint8)
    samples = [
        processor.encode(store(codec)),
        processor.encode(messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]),
        processor.encode(still, prompt="?"),
    ]
    for side in ("left", "right"):
        batch = processor.collate(samples, padding_side=side, multiple_of=16)
        assert batch.input_ids.shape[1] % 16 == 0
        assert batch.attention_mask.sum(1).tolist() == [sample.num_tokens for sample in samples]
        for row, sample in enumerate(samples):
            kept = batch.attention_mask[row].bool()
            assert torch.equal(batch.input_ids[row][kept], sample.input_ids)
            assert torch.equal(batch.labels[row][kept], sample.labels)
            assert (batch.labels[row][~kept] == IGNORE_INDEX).all()
            assert bool(kept[-1]) == (side == "left" or sample.num_tokens == batch.input_ids.shape[1])
    with_media = [sample.vision for sample in samples if sample.vision is not None]
    assert torch.equal(batch["pixel_values"], torch.cat([vision.pixel_values for vision in with_media]))
    assert batch["image_grid_thw"].tolist() == [[8, 8, 10], [1, 2, 2]]
    assert batch.to("cpu", dtype=torch.bfloat16)["pixel_values"].dtype == torch.bfloat16
    assert set(batch.prompt()) == set(batch.keys()) - {"labels"}
    assert samples[1].vision is None
    with pytest.raises(ValueError, match="at least one sample"):
        processor.collate([])


def test_processor_round_trips_through_a_folder(processor: Any, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    config = ProcessorConfig(default_system="Be brief.", pixel_mean=(0.5, 0.5, 0.5), window_images=8)
    LlavaOnevision2Processor(byte_tokenizer(), config).save_pretrained(tmp_path)
    still = np.full((28, 28, 3), 200, np.uint8)
    want = LlavaOnevision2Processor(byte_tokenizer(), config).encode(still, prompt="?")
    for found in (LlavaOnevision2Processor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(found, LlavaOnevision2Processor)
        assert found.config == config
        got = found.encode(still, prompt="?")
        assert torch.equal(got.input_ids, want.input_ids)
        assert torch.equal(got.vision.pixel_values, want.vision.pixel_values)


def test_processor_reads_sizes_from_released_files_and_refuses_contradictions(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text('{"patch_size": 16, "merge_size": 3, "image_std": [1, 1, 1]}')
    config = LlavaOnevision2Processor.from_pretrained(tmp_path).config
    assert (config.patch_px, config.merge, config.pixel_std) == (16, 3, (1, 1, 1))
    (tmp_path / "config.json").write_text('{"model_type": "llava_onevision2", "vision_config": {"patch_size": 14}}')
    with pytest.raises(ValueError, match=r"patch_size is 16, but 14"):
        LlavaOnevision2Processor.from_pretrained(tmp_path)
    for folder in (tmp_path / "absent", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=r"no such folder|no tokenizer"):
            LlavaOnevision2Processor.from_pretrained(folder)


def test_uint8_pixels_are_the_images_themselves(processor: Any) -> None:
    image = np.random.default_rng(5).integers(0, 256, (28, 56, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    raw = processor.encode(Image.open(buffer), prompt="?", pixel_dtype=torch.uint8).vision.pixel_values
    assert raw.dtype == torch.uint8
    assert np.array_equal(np.sort(raw.numpy(), axis=None), np.sort(image, axis=None))
