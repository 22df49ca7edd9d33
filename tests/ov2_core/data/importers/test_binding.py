"""From a dataset's rows to pixels: importers, the manifest of their media, tokenization, and back by key."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from importer_fixtures import conversation, fallen, read, records, texts, write_json_lines, write_parquet
from PIL import Image

from ov2_core.config import recipe, with_overrides
from ov2_core.data.importers import ImportedItem, open_importer
from ov2_core.data.records import check_binding, export_media, manifest_row, read_embedded, read_records, write_records
from ov2_core.errors import BadItemError
from ov2_core.evals.clips import read_canary, write_canary_clip
from ov2_core.storage.files import Store
from ov2_core.storage.reader import ShardReader
from pipelines.options import RunOptions
from pipelines.tokenize_videos import tokenize_videos
from schemas.records import MediaRef, TrainingRecord

VIDEOS = (3, 1, 4, 2)


@dataclasses.dataclass
class Corpus:
    folder: Path
    items: list[ImportedItem]
    run: Path


def still(number: int) -> bytes:
    """An image whose grey tells its number."""
    data = io.BytesIO()
    Image.new("RGB", (56, 56), (40 * number,) * 3).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Canary clips asked about twice and in another order than they lie, a range of one, and embedded stills; tokenized."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "v").mkdir()
    for video in VIDEOS:
        write_canary_clip(folder / f"v/{video}.mp4", video_id=100 + video, num_frames=16, fps=10.0, columns=4, rows=3)
    rows = [
        {"video": f"v/{video}.mp4", "conversations": conversation(f"<image>\n{kind}", f"It is {100 + video}.")}
        for kind in ("What?", "Which?")
        for video in sorted(VIDEOS)
    ]
    write_json_lines(folder / "qa.json", rows)
    write_json_lines(
        folder / "clip.jsonl", [{"video": "v/4.mp4", "start": 0.5, "end": 1.5, "conversations": conversation()}]
    )
    (folder / "flash.yaml").write_text("- {json_path: clip.jsonl}")
    texts_ = [{"user": "Which?", "assistant": "Grey."}]
    images = [[1, 2], [2], [5]]
    write_parquet(
        folder / "fv.parquet",
        [{"images": [{"bytes": still(n), "path": None} for n in numbers], "texts": texts_} for numbers in images],
    )
    items = read("llava-video", folder / "qa.json")
    items += read("videochat-flash", folder / "flash.yaml", source="llava-video-178k")
    items += read("finevision", folder / "fv.parquet")
    exported = export_media(items, str(folder / "media"))
    assert (exported.num_media, exported.num_refs, exported.left_out) == (4 + 1 + 3, 8 + 1 + 4, {})
    config = with_overrides(recipe("codec-8"), {"shards.max_samples": "3"})
    tokenize_videos(
        str(folder / "media" / "manifest.jsonl"), Store(folder / "run"), config, RunOptions(workers=0, progress="off")
    )
    return Corpus(folder=folder, items=items, run=folder / "run")


def test_every_medium_meets_its_own_pixels(corpus: Corpus) -> None:
    made = records(corpus.items)
    assert len(made) == 12
    with ShardReader(corpus.run) as reader:
        assert len(reader) == 8
        for record in made[::-1]:
            for ref in record.media:
                sample = reader.read(ref.key)
                check_binding(ref, sample.key, sample.record)
                if ref.kind == "video":
                    canary = read_canary(sample.image(0)[:28, :28])
                    assert ref.uri is not None
                    assert canary.video_id == 100 + int(Path(ref.uri).stem)
                    assert canary.frame == (5 if ref.start_seconds else 0)
                    if "It is" in texts(record)[1][1]:
                        assert texts(record)[1][1] == f"It is {canary.video_id}."
                else:
                    shown = Image.open(io.BytesIO(read_embedded(ref)))
                    np.testing.assert_allclose(sample.image(0), np.asarray(shown), atol=2)


def test_a_wrong_sample_is_not_taken(corpus: Corpus) -> None:
    with ShardReader(corpus.run) as reader:
        one, other = (record.media[0] for record in records(corpus.items)[:2])
        there = reader.read(other.key)
        for ref, message in [
            (one, "key: the record has"),
            (other.model_copy(update={"start_seconds": 0.5}), "start_seconds: the record has 0.5, the sample None"),
            (other.model_copy(update={"id": one.id}), "id: the record has"),
            (other.model_copy(update={"kind": "image"}), "kind: the record has 'image'"),
        ]:
            with pytest.raises(BadItemError, match=message) as caught:
                check_binding(ref, there.key, there.record)
            assert caught.value.reason == "unbound_media"


def test_exported_media_can_be_replaced_by_their_files(corpus: Corpus) -> None:
    lines = [json.loads(line) for line in (corpus.folder / "media" / "manifest.jsonl").read_text().splitlines()]
    stills = [line for line in lines if "image" in line]
    assert {(corpus.folder / "media" / line["image"]).read_bytes() for line in stills} == {still(n) for n in (1, 2, 5)}
    assert all(line["image"].endswith(".png") for line in stills)


def test_token_shards_give_their_text_back(corpus: Corpus, tmp_path: Path) -> None:
    rows = [
        {"video": str(corpus.folder / f"v/{v}.mp4"), "id": f"clip {v}", "caption": f"It is {100 + v}."} for v in VIDEOS
    ]
    rows[1]["tags"], rows[1]["source"] = ["t"], "pets"  # type: ignore[assignment]
    del rows[3]["caption"]
    manifest = write_json_lines(tmp_path / "m.jsonl", rows)
    config = with_overrides(recipe("uniform-8"), {"shards.max_samples": "2"})
    tokenize_videos(str(manifest), Store(tmp_path / "run"), config, RunOptions(workers=0, progress="off"))
    items = read("token-shards", tmp_path / "run")
    made = records(items)
    assert [record.id for record in made] == [f"clip {v}" for v in VIDEOS[:3]]
    assert made[1].tags == ["t", "source:pets"]
    with ShardReader(tmp_path / "run") as reader:
        for record, video in zip(made, VIDEOS, strict=False):
            (ref,) = record.media
            assert ref.run == str(tmp_path / "run")
            sample = reader.read(ref.key)
            check_binding(ref, sample.key, sample.record)
            assert texts(record) == [(turn.role, turn.content) for turn in sample.record.messages]
            assert texts(record)[1][1] == f"It is {read_canary(sample.image(0)[:28, :28]).video_id}."
            assert read_canary(sample.image(0)[:28, :28]).video_id == 100 + video
    (silent,) = fallen(items)
    assert (silent.id, silent.reason) == ("clip 2", "invalid_text")

    tar = tmp_path / "run/shards/shard-000000.tar"
    data = tar.read_bytes()
    at = data.index(b'"clip 3"')
    tar.write_bytes(data[:at] + b'"clip 9"' + data[at + 8 :])
    items = read("token-shards", tmp_path / "run")
    assert [row.reason for row in fallen(items)] == ["damaged_sample", "invalid_text"]
    assert "is of 'clip 9', not 'clip 3'" in fallen(items)[0].message
    assert len(records(items)) == 2


def test_what_is_no_token_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the folder of a token run"):
        list(open_importer("token-shards", str(tmp_path)))


def record_of(ref: MediaRef) -> ImportedItem:
    made: dict[str, Any] = {
        "id": ref.key,
        "source": "s",
        "modality": ref.kind,
        "media": [ref],
        "messages": [{"role": "user", "content": f"<{ref.kind}>"}, {"role": "assistant", "content": "A"}],
        "origin": {"file": "f", "row": 1},
    }
    return ImportedItem(file="f", row=1, record=TrainingRecord.model_validate(made))


def test_one_key_for_two_media_is_an_error(tmp_path: Path) -> None:
    items = [record_of(MediaRef(kind="video", key="k", id="k", uri=uri)) for uri in ("/a.mp4", "/a.mp4", "/b.mp4")]
    assert export_media(items[:2], str(tmp_path / "one")).num_media == 1
    with pytest.raises(ValueError, match=r"the key k stands for /a\.mp4 and for /b\.mp4"):
        export_media(items, str(tmp_path / "two"))


def test_folders_of_frames_stand_in_the_manifest_and_tokenized_media_do_not(tmp_path: Path) -> None:
    frames = MediaRef(kind="video", key="f", id="f", uri="/frames/f", frames_fps=2)
    run = MediaRef(kind="video", key="r", id="r", run="/run")
    exported = export_media([record_of(frames), record_of(run)], str(tmp_path))
    assert (exported.num_media, list(exported.left_out)) == (1, [])
    assert json.loads((tmp_path / "manifest.jsonl").read_text()) == {"video": "/frames/f", "id": "f", "frames_fps": 2}
    with pytest.raises(BadItemError, match="without a file"):
        manifest_row(run)


def test_embedded_bytes_are_proven(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [
        {"images": [{"bytes": still(n), "path": None}], "texts": [{"user": "Q", "assistant": "A"}]} for n in range(5)
    ]
    made = records(read("finevision", write_parquet(path, rows)))
    assert [read_embedded(record.media[0]) for record in made] == [still(n) for n in range(5)]
    write_parquet(path, rows[::-1])
    with pytest.raises(BadItemError, match=r"row 1, images\[0\] is not the image that was imported") as caught:
        read_embedded(made[0].media[0])
    assert caught.value.reason == "damaged_sample"
    assert read_embedded(made[2].media[0]) == still(2)


def test_read_records_names_a_bad_line(tmp_path: Path) -> None:
    item = record_of(MediaRef(kind="video", key="k", id="k", uri="/a.mp4"))
    assert item.record is not None
    write_records(str(tmp_path / "r.jsonl"), [item.record] * 2)
    assert list(read_records(str(tmp_path / "r.jsonl"))) == [item.record] * 2
    with (tmp_path / "r.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ValueError, match=r"r\.jsonl:3: .*write the records again"):
        list(read_records(str(tmp_path / "r.jsonl")))
