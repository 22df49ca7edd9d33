"""A folder of stills as a video: order, times, ranges, and what is wrong with it."""

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from ov2_core.config import RunConfig, recipe
from ov2_core.errors import BadItemError
from ov2_core.make_sample import ProbeTask, make_probe, make_sample
from ov2_core.media.frame_folder import list_frames
from ov2_core.tokenize_video import tokenize_frames
from schemas.tokens import SampleRecord
from schemas.video import ManifestRow

CONFIG = recipe("uniform-4").tokenizer


def grey(number: int) -> int:
    return 10 + 15 * number


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve frames, img_0.png .. img_11.png, whose grey says which; beside them what is no frame."""
    path = tmp_path / "frames"
    path.mkdir()
    for number in range(12):
        Image.new("RGB", (64, 60), (grey(number),) * 3).save(path / f"img_{number}.png")
    (path / "notes.txt").write_text("no frame")
    (path / "sub.png").mkdir()
    return path


def shown(images_NHW3: np.ndarray[Any, Any]) -> list[int]:
    return [round((float(image.mean()) - 10) / 15) for image in images_NHW3]


@pytest.mark.parametrize(
    ("fps", "start", "end", "frames", "ticks", "duration"),
    [
        (2.0, None, None, [0, 4, 7, 11], [0, 4, 7, 11], 6.0),
        (2.0, 1.0, 3.0, [2, 3, 4, 5], [0, 1, 2, 3], 2.0),
        (1.0, 9.5, None, [10, 11], [0, 1], 2.0),
        (29.97, None, 2 / 29.97, [0, 1], [0, 1], 2 / 29.97),
    ],
)
def test_frames_come_in_the_order_of_their_numbers_at_their_times(
    folder: Path,
    fps: float,
    start: float | None,
    end: float | None,
    frames: list[int],
    ticks: list[int],
    duration: float,
) -> None:
    made = tokenize_frames(list_frames(str(folder), fps), CONFIG, start_seconds=start, end_seconds=end)
    assert shown(made.images_NHW3) == frames
    assert [sorted(set(p[:, 0].tolist())) for p in made.positions_NP3] == [[t] for t in ticks]
    assert made.fps == pytest.approx(fps)
    assert made.duration_seconds == pytest.approx(duration)
    assert made.first_shown_seconds == pytest.approx((start and np.ceil(start * fps) / fps) or 0.0)
    assert [(g.first_image, g.num_images) for g in made.groups] == [(0, len(frames))]


def test_a_folder_in_an_object_store_reads_the_same(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in folder.glob("*.*"):
        if path.is_file():
            memory.pipe_file(f"/frames-of-a-test/{path.name}", path.read_bytes())
    there = tokenize_frames(list_frames("memory://frames-of-a-test", 2.0), CONFIG)
    here = tokenize_frames(list_frames(str(folder), 2.0), CONFIG)
    np.testing.assert_array_equal(there.images_NHW3, here.images_NHW3)
    np.testing.assert_array_equal(there.positions_NP3, here.positions_NP3)
    memory.rm("/frames-of-a-test", recursive=True)


def task(path: Path, **fields: Any) -> ProbeTask:
    row = ManifestRow(video=str(path), frames_fps=2.0, **fields)
    return ProbeTask(line=1, id="x", key="x", uri=str(path), row=row)


def made(path: Path, config: RunConfig, **fields: Any) -> Any:
    outcome = make_probe(task(path, **fields), config)
    assert outcome.planned is not None, outcome
    return make_sample(outcome.planned, config)


def test_a_row_becomes_a_sample_whose_record_says_its_times(folder: Path) -> None:
    outcome = made(folder, recipe("uniform-4"), caption="Ever lighter.", start=1.0, end=3.0)
    assert outcome.quarantined is None
    record = SampleRecord.model_validate_json(dict(outcome.members)["json"])
    assert (record.fps, record.provenance.codec, record.provenance.num_frames) == (2.0, "frames", 4)
    assert (record.provenance.start_seconds, record.provenance.end_seconds) == (1.0, 3.0)


def test_a_codec_recipe_quarantines_and_says_which_one_to_take(folder: Path) -> None:
    fallen = make_probe(task(folder), recipe("codec-32")).quarantined
    assert fallen is not None, "found before anything is planned"
    assert (fallen.reason, "use a recipe uniform-N" in fallen.message) == ("unsupported", True)
    with pytest.raises(BadItemError, match="use a recipe uniform-N"):
        tokenize_frames(list_frames(str(folder), 2.0), recipe("codec-32").tokenizer)


def test_a_frame_that_changed_since_the_plan_is_noticed(folder: Path) -> None:
    planned = make_probe(task(folder), recipe("uniform-4")).planned
    assert planned is not None
    (folder / "img_12.png").write_bytes((folder / "img_0.png").read_bytes())
    outcome = make_sample(planned, recipe("uniform-4"))
    assert outcome.quarantined is not None
    assert outcome.quarantined.reason == "source_changed"


def test_a_broken_frame_is_named(folder: Path) -> None:
    (folder / "img_7.png").write_bytes(b"no image")  # not the first one, which the plan decodes
    outcome = made(folder, recipe("uniform-4"))
    assert (outcome.quarantined.reason, "img_7.png: " in outcome.quarantined.message) == ("not_media", True)


@pytest.mark.parametrize(
    ("name", "reason"), [("nothing", "source_missing"), ("a.mp4", "source_missing"), ("empty", "source_empty")]
)
def test_what_is_no_folder_of_frames_says_why(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(BadItemError) as caught:
        list_frames(str(tmp_path / name), 1.0)
    assert caught.value.reason == reason
    assert name in str(caught.value)
