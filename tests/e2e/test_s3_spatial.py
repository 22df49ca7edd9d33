"""Spatial questions from scenes on an object store into a run there: the same records as from a local folder."""

from pathlib import Path

import pytest

from ov2_core.data.importers.spatial_qa import import_spatial_qa
from ov2_core.spatial.gallery import write_gallery
from ov2_core.spatial.procedural import make_scene
from ov2_core.spatial.recipe import SpatialRecipe
from ov2_core.spatial.run_files import iter_questions, verify_spatial
from ov2_core.spatial.scene_files import write_scene
from ov2_core.spatial.sources import open_source
from ov2_core.storage.files import Store
from pipelines.generate_spatial_qa import generate_spatial_qa
from pipelines.options import RunOptions

pytestmark = pytest.mark.s3
INLINE = RunOptions(workers=0, progress="off")
RECIPE = SpatialRecipe(questions_per_type=2, scenes_per_shard=2)


def test_scenes_on_s3_give_the_questions_of_local_ones(bucket: str, tmp_path: Path) -> None:
    for number in range(3):
        write_scene(make_scene(5, number), str(tmp_path / "scenes" / f"room_{number}"))
    (tmp_path / "scenes" / "room_1" / "depth" / "002.png").unlink()
    there = Store(f"{bucket}/scenes")
    for path in sorted(p for p in (tmp_path / "scenes").rglob("*") if p.is_file()):
        there.write_bytes(path.relative_to(tmp_path / "scenes").as_posix(), path.read_bytes())
    local, remote = Store(str(tmp_path / "run")), Store(f"{bucket}/run")
    generate_spatial_qa(str(tmp_path / "scenes"), local, RECIPE, INLINE)
    summary = generate_spatial_qa(f"{bucket}/scenes/", remote, RECIPE, INLINE)
    assert summary.report.quarantined == {"missing_depth": 1}
    assert verify_spatial(remote).ok

    def bare(store: Store) -> list[dict]:
        return [question.model_dump(exclude={"frames"}) for question in iter_questions(store)]

    assert bare(local) == bare(remote)
    shown = {path for question in iter_questions(remote) for path in question.frames}
    assert all(path.startswith(f"{bucket}/scenes/room_") for path in shown)
    assert all(there.exists(path.removeprefix(f"{bucket}/scenes/")) for path in shown)
    records = [item.record for item in import_spatial_qa(f"{bucket}/run/records")]
    assert len(records) > 60
    assert all(ref.uri.startswith("s3://") for record in records for ref in record.media)
    assert "data:image/jpeg" in Path(write_gallery_locally(remote, tmp_path)).read_text()
    # Written to disk, the scenes are read as any folder.
    generate_spatial_qa(
        f"{bucket}/scenes", Store(str(tmp_path / "again")), RECIPE, INLINE, export_folder=str(tmp_path / "exported")
    )
    assert open_source(str(tmp_path / "exported")).count == 2


def write_gallery_locally(store: Store, folder: Path) -> str:
    write_gallery(store, per_type=1)
    target = folder / "gallery.html"
    target.write_bytes(store.read_bytes("gallery.html"))
    return str(target)


def test_a_url_without_scenes_of_the_plain_format_is_refused(bucket: str) -> None:
    Store(f"{bucket}/other").write_bytes("41000000/lowres_wide.traj", b"0 0 0 0 0 0 0")
    with pytest.raises(ValueError, match="plain format"):
        open_source(f"{bucket}/other")
