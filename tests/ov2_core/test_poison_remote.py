"""Damaged and lying files end alike, whether they lie on a disk or in an object store."""

import errno
from pathlib import Path

import fsspec
import pytest

from ov2_core.config import recipe
from ov2_core.evals.poison import PoisonRow, write_poison
from ov2_core.make_sample import ProbeTask, make_probe, make_sample
from ov2_core.media.container import _Input
from ov2_core.storage.local_file import LocalFile
from schemas.video import ManifestRow

CONFIG = recipe("uniform-4")


def end_of(uri: str, row: PoisonRow) -> tuple[str, object]:
    """How the row ends: a reason, or its pixels and positions."""
    manifest_row = ManifestRow.model_validate({row.media: uri})
    probed = make_probe(ProbeTask(line=1, id="x", key="x", uri=uri, row=manifest_row), CONFIG)
    if probed.planned is None:
        assert probed.quarantined is not None
        return "probe", probed.quarantined.reason
    made = make_sample(probed.planned, CONFIG)
    if made.quarantined is not None:
        return "tokenize", made.quarantined.reason
    assert made.members is not None
    return "made", [data for name, data in made.members if not name.endswith("json")]


def test_the_whole_corpus_ends_as_it_does_on_a_disk(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    ends = set()
    for row in write_poison(tmp_path / "poison"):
        path = tmp_path / "poison" / row.name
        if not path.is_file() or row.frames_fps is not None:
            continue
        memory.pipe_file(f"/poison/{row.name}", path.read_bytes())
        here, there = end_of(str(path), row), end_of(f"memory://poison/{row.name}", row)
        memory.rm_file(f"/poison/{row.name}")
        assert here == there, row.name
        assert here[1] != "internal_error", row.name
        ends.add(here[0])
    assert ends == {"probe", "tokenize", "made"}


def test_a_seek_before_the_beginning_is_an_error_code(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    fsspec.filesystem("memory").pipe_file("/seek/a", b"12345")
    with LocalFile(tmp_path / "a") as local, fsspec.open("memory://seek/a", "rb") as remote:
        for file in (local, remote):
            seen = _Input(file)
            assert seen.seek(3) == 3
            assert seen.seek(-9) == -errno.EINVAL
            assert seen.read(2) == b"45"
            assert seen.name.endswith("/a")
    with pytest.raises(ValueError, match="closed"):
        local.tell()
