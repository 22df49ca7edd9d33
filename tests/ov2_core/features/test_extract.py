"""Features of a shard: whose they are, what they are worth, and what happens to samples that cannot be read."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from feature_runs import make_model
from safetensors.torch import load as load_tensors

from ov2_core.features.canary import read_feature_canary, write_transparent_model
from ov2_core.features.encoder import FeatureEncoder, PixelBatch, describe_encoder, encoder_digest, num_flops
from ov2_core.features.extract import FeatureSample, SourceLostError, Timings, extract_shard
from ov2_core.features.plan import open_source
from ov2_core.features.stored_rows import restore_rows
from ov2_core.model.patches import patchify, to_block_order
from ov2_core.model.visual import show_sample
from ov2_core.model.weights import load_encoder, load_model, save_weights, split_encoder
from ov2_core.storage.commit import iter_commits
from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader, StoredSample
from schemas.shard import CommitRecord, QuarantineRow

EXACT = 1e-5
"""Of the largest value of a sample: float32, whatever the composition of batches."""


def make_encoder(run: Path, folder: Path, *, stage: str = "merged", dtype: str = "fp32") -> FeatureEncoder:
    source = open_source(Store(run))
    config = describe_encoder(
        folder,
        stage=stage,
        dtype=dtype,
        device="cpu",
        source_digest=source.digest,
        source_config_digest=source.config_digest,
    )
    return FeatureEncoder.load(folder, config, "cpu")


def features_of(sample: FeatureSample) -> torch.Tensor:
    tensors = load_tensors(dict(sample.members)["features.safetensors"])
    return restore_rows(tensors["features"], tensors.get("scales"))


def extract(
    run: Path, encoder: Any, *, tokens_per_batch: int = 100, **options: Any
) -> dict[str, FeatureSample | QuarantineRow]:
    """By key, all shards."""
    ends: dict[str, FeatureSample | QuarantineRow] = {}
    for commit in iter_commits(Store(run)):
        with extract_shard(Store(run), commit, encoder, tokens_per_batch=tokens_per_batch, **options) as ended:
            for end in ended:
                key = end.source.key if isinstance(end, FeatureSample) else end.id
                assert key not in ends
                ends[key] = end
    return ends


def pixels_of(stored: StoredSample) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """One sample's encoder inputs, by the plain way."""
    visual = show_sample(stored)
    pixels = patchify(visual.images(), num_patches=visual.num_patches, patch_px=14, merge=2)
    positions = to_block_order(visual.positions_NP3, rows=visual.rows, columns=visual.columns, merge=2)
    return pixels, torch.from_numpy(positions.reshape(-1, 3)).long(), visual.group_lengths()


@pytest.fixture(scope="module")
def stored(token_run: Path) -> dict[str, StoredSample]:
    with ShardReader(token_run) as reader:
        return {sample.key: sample for sample in reader}


@pytest.fixture(scope="module")
def one_by_one(token_run: Path, tiny_model: Path, stored: dict[str, StoredSample]) -> dict[str, torch.Tensor]:
    """Merged features of each sample, encoded alone by the model itself."""
    encoder = load_encoder(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        return {key: encoder(*pixels_of(sample)) for key, sample in stored.items()}


class Jittery:
    """An encoder whose batches take random times, so that decoding, encoding and gathering interleave differently."""

    def __init__(self, encoder: FeatureEncoder, seed: int) -> None:
        self._encoder = encoder
        self._generator = torch.Generator().manual_seed(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def launch(self, batch: PixelBatch) -> Any:
        time.sleep(float(torch.rand(1, generator=self._generator)) * 0.01)
        return self._encoder.launch(batch)


@pytest.mark.parametrize("tokens_per_batch", [1, 37, 100, 10_000])
def test_fp32_features_are_exact_whatever_the_batches(
    token_run: Path, tiny_model: Path, one_by_one: dict[str, torch.Tensor], tokens_per_batch: int
) -> None:
    encoder = make_encoder(token_run, tiny_model)
    ends = extract(token_run, encoder, tokens_per_batch=tokens_per_batch, decode_threads=3)
    assert ends.keys() == one_by_one.keys()
    for key, want in one_by_one.items():
        got = features_of(ends[key])
        assert got.shape == want.shape
        assert (got - want).abs().max() <= EXACT * want.abs().max()
    values = list(one_by_one.values())
    assert all(
        (a[:6] - b[:6]).abs().max() > 100 * EXACT * a.abs().max() for a in values for b in values if a is not b
    ), "samples differ by far more than the tolerance, so a swap would show"


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 2.0**-8), ("int8", 1 / 254)])
def test_stored_types_are_within_their_bound(
    token_run: Path, tiny_model: Path, one_by_one: dict[str, torch.Tensor], dtype: str, bound: float
) -> None:
    ends = extract(token_run, make_encoder(token_run, tiny_model, dtype=dtype))
    for key, want in one_by_one.items():
        error = (features_of(ends[key]).double() - want.double()).abs()
        peak = want.double().abs().amax(dim=1, keepdim=True)
        assert (error <= (bound + EXACT) * peak).all()


@pytest.mark.parametrize("seed", range(3))
def test_canary_every_feature_belongs_to_its_video_frame_and_place(token_run: Path, tmp_path: Path, seed: int) -> None:
    """Each block's pixels name video, frame, row and column; the encoder lets them through; the features must say the same."""
    encoder = Jittery(make_encoder(token_run, write_transparent_model(tmp_path), stage="unmerged"), seed)
    ends = extract(token_run, encoder, tokens_per_batch=240, decode_threads=4)  # parts of two samples a batch
    for key, end in ends.items():
        assert isinstance(end, FeatureSample)
        if key == "still":
            continue
        members = dict(end.members)
        with ShardReader(token_run) as reader:
            source = reader.read(key)
        positions = pixels_of(source)[1][::4].tolist()
        features = features_of(end)
        assert len(features) == 4 * len(positions) == 4 * end.record.num_tokens
        read = [read_feature_canary(features[4 * i : 4 * i + 4]) for i in range(len(positions))]
        assert {canary.video_id for canary in read} == {100 + int(key.removeprefix("clip-"))}
        assert [[c.frame, 2 * c.row, 2 * c.column] for c in read] == positions
        assert members["patch_positions_000.npy"] == source.member("patch_positions_000.npy")
        assert end.record.messages == source.record.messages


def test_batches_hold_parts_of_several_samples_and_no_padding(token_run: Path, tiny_model: Path) -> None:
    encoder = make_encoder(token_run, tiny_model)
    seen: list[PixelBatch] = []
    launch = encoder.launch
    encoder.launch = lambda batch: (seen.append(batch), launch(batch))[1]  # type: ignore[method-assign]
    extract(token_run, encoder, tokens_per_batch=170)
    # Shards: clips 0 and 1 (160 tokens each, two groups), the still (6) and clip 2, clips 3 and 4.
    assert [len(batch.pixels) // 4 for batch in seen] == [160, 160, 166, 160, 160]
    assert all(sum(batch.group_lengths) == len(batch.pixels) == len(batch.positions) for batch in seen)
    seen.clear()
    extract(token_run, encoder, tokens_per_batch=240)
    assert [len(batch.pixels) // 4 for batch in seen] == [240, 80, 166, 240, 80]


def spoiled(run: Path, spoil: Callable[[Store, CommitRecord], None], into: Path) -> Path:
    shutil.copytree(run, into)
    for commit in iter_commits(Store(into)):
        spoil(Store(into), commit)
    return into


def overwrite(store: Store, commit: CommitRecord, key: str, part: str, data: bytes, at: int = 0) -> None:
    for sample in commit.samples:
        if sample.key == key:
            offset = next(p.content_byte_offset for p in sample.parts if p.name == part)
            with open(store.local(f"shards/{commit.tar_name}"), "r+b") as file:
                file.seek(offset + at)
                file.write(data)


@pytest.mark.parametrize(
    ("part", "data", "at", "message"),
    [
        ("img_006.jpg", b"no JPEG at all", 0, "img_006.jpg: not a readable JPEG"),
        ("json", b"}}", 0, "json"),
        ("patch_positions_003.npy", b"\xee", 300, "positions_digest"),  # no position is as large
    ],
)
@pytest.mark.parametrize("tokens_per_batch", [1, 10_000])
def test_a_damaged_sample_falls_alone(
    token_run: Path,
    tiny_model: Path,
    tmp_path: Path,
    part: str,
    data: bytes,
    at: int,
    message: str,
    tokens_per_batch: int,
) -> None:
    """The sixth image is in the second group: parts of the sample are encoded before it falls."""
    run = spoiled(token_run, lambda s, c: overwrite(s, c, "clip-1", part, data, at), tmp_path / "run")
    encoder = make_encoder(token_run, tiny_model)
    good = extract(token_run, encoder, tokens_per_batch=tokens_per_batch)
    ends = extract(run, encoder, tokens_per_batch=tokens_per_batch)
    fallen = ends.pop("clip-1")
    assert isinstance(fallen, QuarantineRow)
    assert (fallen.reason, fallen.stage, fallen.line) == ("damaged_sample", "encode", 2)
    assert message in fallen.message
    if part != "json":
        assert fallen.row is not None, "its video can be tokenized anew from the ledger"
        assert fallen.row.id == "clip-1"
    assert ends.keys() == good.keys() - {"clip-1"}
    for key, end in ends.items():
        assert (features_of(end) - features_of(good[key])).abs().max() <= EXACT * features_of(good[key]).abs().max()


def test_values_that_are_not_finite_never_ship(token_run: Path, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    model = load_model(folder)
    with torch.no_grad():
        model.model.visual.merger.mlp[2].bias[3] = float("inf")
    save_weights(model, folder)
    for dtype in ("fp32", "bf16", "int8"):
        ends = extract(token_run, make_encoder(token_run, folder, dtype=dtype))
        assert {end.reason for end in ends.values()} == {"internal_error"}
        assert "not finite in 160 of 160 rows" in ends["clip-0"].message


def test_a_lost_or_torn_source_stops_and_blames_no_sample(token_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    encoder = make_encoder(token_run, tiny_model)
    run = spoiled(token_run, lambda s, c: s.remove(f"shards/{c.tar_name}"), tmp_path / "lost")
    with pytest.raises(SourceLostError, match="is missing"):
        extract(run, encoder)
    run = spoiled(token_run, lambda s, c: Path(s.local(f"shards/{c.tar_name}")).write_bytes(b"x"), tmp_path / "torn")
    with pytest.raises(SourceLostError, match="has 1 bytes"):
        extract(run, encoder)


def test_an_error_of_the_encoder_rises_and_leaves_no_thread(token_run: Path, tiny_model: Path) -> None:
    encoder = make_encoder(token_run, tiny_model)

    def launch(batch: PixelBatch) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    before = threading.active_count()
    encoder._encoder.encode = launch  # type: ignore[assignment]
    encoder._rows = launch  # type: ignore[method-assign]
    with pytest.raises(MemoryError, match="80 GiB"):
        extract(token_run, encoder)
    assert threading.active_count() == before


def test_skipped_keys_are_not_read(token_run: Path, tiny_model: Path) -> None:
    encoder = make_encoder(token_run, tiny_model)
    assert extract(token_run, encoder, skip={"clip-1", "still"}).keys() == {"clip-0", "clip-2", "clip-3", "clip-4"}
    assert extract(token_run, encoder, only={"clip-4"}).keys() == {"clip-4"}


def test_encoder_digest_tells_encoders_apart_and_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model)
    state = model.model.visual.state_dict()
    apart = split_encoder({name: tensor for name, tensor in state.items()})
    standalone = tmp_path / "standalone"
    save_weights(apart, standalone)
    model.config.vision_config.save_pretrained(standalone)
    unmerged = encoder_digest(tiny_model, stage="unmerged")
    assert encoder_digest(standalone, stage="unmerged") == unmerged, "the layout of the file does not matter"

    def changed(name: str, change: Callable[[torch.Tensor], Any]) -> tuple[str, str]:
        folder = tmp_path / name
        other = load_model(tiny_model)
        with torch.no_grad():
            change(other.state_dict()[name])
        save_weights(other, folder)
        other.config.save_pretrained(folder)
        return encoder_digest(folder, stage="merged"), encoder_digest(folder, stage="unmerged")

    merged = encoder_digest(tiny_model, stage="merged")
    assert changed("lm_head.weight", torch.Tensor.zero_) == (merged, unmerged)
    trained = changed("model.visual.merger.mlp.0.weight", lambda w: w[0, :1].add_(1e-3))
    assert (trained[0] != merged, trained[1]) == (True, unmerged), (
        "a connector in training leaves unmerged features valid"
    )
    other = changed("model.visual.encoder.layers.2.mlp.fc1.bias", lambda b: b[:1].add_(1e-3))
    assert other[0] != merged
    assert other[1] != unmerged


def test_merged_features_need_a_connector(token_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model)
    save_weights(split_encoder(model.model.visual.state_dict()), tmp_path)
    model.config.vision_config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="without a connector"):
        make_encoder(token_run, tmp_path)
    assert make_encoder(token_run, tmp_path, stage="unmerged").config.width == 128


def test_another_encoder_on_a_node_is_refused(token_run: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = make_encoder(token_run, tiny_model).config
    other = make_model(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="holds another encoder"):
        FeatureEncoder.load(other, config, "cpu")


def test_timings_account_for_the_encoder(token_run: Path, tiny_model: Path) -> None:
    encoder = make_encoder(token_run, tiny_model)
    timings = Timings()
    (commit, *_) = iter_commits(Store(token_run))
    with extract_shard(Store(token_run), commit, Jittery(encoder, 0), tokens_per_batch=80, timings=timings) as ended:
        for _ in ended:
            time.sleep(0.02)
    assert timings.num_batches == 4
    assert timings.encode_seconds > 0
    groups = [320] * 4  # two clips of two groups of four canvases of 80 patches
    assert timings.num_flops == pytest.approx(num_flops(encoder._encoder.config, groups, merged=True))
