"""Manifests of long videos to manifests of clips, and these to samples, without Ray."""

import json
from pathlib import Path

import numpy as np
import pytest

from ov2_core.config import recipe, with_overrides
from ov2_core.data.manifest import read_manifest
from ov2_core.evals.clips import texture, write_clip
from ov2_core.split_row import SplitConfig
from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader
from ov2_core.storage.verify import verify_run
from ov2_core.storage.writer import decode_sample
from pipelines.options import RunOptions
from pipelines.split_shots import split_shots
from pipelines.tokenize_videos import tokenize_videos

INLINE = RunOptions(workers=0, progress="off")
SHOTS = (20, 30, 6, 24)
"""Frames, 10 a second."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    rng = np.random.default_rng(0)
    pictures = [texture(rng, 96, 128) for _ in SHOTS]
    frames = (picture for picture, count in zip(pictures, SHOTS, strict=True) for _ in range(count))
    write_clip(folder / "long.mp4", frames, fps=10)
    write_clip(folder / "one.mp4", (pictures[0] for _ in range(15)), fps=10)
    return folder


def manifest(folder: Path, *rows: object) -> str:
    path = folder / "manifest.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_row_becomes_a_row_a_shot_with_its_source_and_tags(folder: Path, tmp_path: Path) -> None:
    source = manifest(
        folder, {"video": "long.mp4", "id": "a", "source": "s", "tags": ["t"], "caption": "Of the whole."}
    )
    out = tmp_path / "clips.jsonl"
    summary = split_shots(source, str(out), SplitConfig(max_seconds=2.0), INLINE)
    assert (summary.num_rows, summary.num_shots, summary.num_written) == (1, 4, 5)
    rows = [item.row for item in read_manifest(str(out)) if item.row is not None]
    assert [(row.id, row.start, row.end) for row in rows] == [
        ("a_0-2000", 0.0, 2.0),
        ("a_2000-3500", 2.0, 3.5),
        ("a_3500-5000", 3.5, 5.0),
        ("a_5600-6800", 5.6, 6.8),
        ("a_6800-8000", 6.8, 8.0),
    ]
    assert {(row.video, row.source, *row.tags, row.caption) for row in rows} == {
        (str(folder / "long.mp4"), "s", "t", None)
    }
    again = tmp_path / "again.jsonl"
    split_shots(source, str(again), SplitConfig(max_seconds=2.0), INLINE)
    assert again.read_bytes() == out.read_bytes()


def test_what_cannot_be_split_stays_and_the_plan_names_it(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.mp4").write_bytes(b"no video at all" * 50)
    source = manifest(
        folder,
        {"video": "one.mp4", "caption": "One shot."},
        "not json",
        {"video": "gone.mp4", "id": "gone"},
        {"video": "broken.mp4", "id": "broken"},
        {"video": "concat:one.mp4", "id": "chained"},
        {"video": "long.mp4", "id": "part", "start": 1.0, "end": 4.0},
    )
    out = tmp_path / "clips.jsonl"
    summary = split_shots(source, str(out), SplitConfig(), INLINE)
    assert dict(summary.problems) == {"malformed_row": 1, "source_missing": 1, "not_media": 1, "refused_uri": 1}
    store = Store(tmp_path / "run")
    config = with_overrides(recipe("uniform-4"), {"area_px": "12544"})
    tokenize_videos(str(out), store, config, INLINE)
    found = verify_run(store)
    assert (found.errors, found.committed) == ([], 3)
    assert found.quarantined_by_reason == {
        "malformed_row": 1, "not_media": 1, "refused_uri": 1, "source_missing": 1
    }  # fmt: skip
    with ShardReader(store.root) as reader:
        samples = {s.key: decode_sample(s.members)[0] for s in reader}
    assert sorted(samples)[1:] == ["part_1000-2000", "part_2000-4000"]
    whole = next(sample for key, sample in samples.items() if not key.startswith("part"))
    assert whole.messages[-1].content == "One shot."
    clip = samples["part_2000-4000"].provenance
    assert (clip.start_seconds, clip.end_seconds, clip.first_shown_seconds, clip.num_frames) == (2.0, 4.0, 2.0, 20)


def test_lengths_and_names_that_make_no_sense_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most half of --max-seconds"):
        SplitConfig(min_seconds=3, max_seconds=5)
    with pytest.raises(ValueError, match=r"must name a \.jsonl file"):
        split_shots(manifest(folder, {"video": "one.mp4"}), str(tmp_path / "clips.csv"), SplitConfig(), INLINE)
