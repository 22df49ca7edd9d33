"""Readers: one scene written in each documented layout comes back with the same geometry, and its questions are proven."""

import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spatial_scenes import (
    hand_scene,
    lz4_stored,
    write_arkit,
    write_ca1m,
    write_davis,
    write_hypersim,
    write_hypersim_hdf5,
    write_molmo,
    write_plain,
    write_scannet,
    write_scannetpp,
)

from ov2_core.data.importers.spatial_qa import import_spatial_qa
from ov2_core.errors import BadItemError
from ov2_core.spatial.checker import Evidence, prove
from ov2_core.spatial.generate import generate_questions
from ov2_core.spatial.readers.depth_bin import count_depth_frames, lz4_block, read_depth_frames
from ov2_core.spatial.recipe import SpatialRecipe
from ov2_core.spatial.sources import open_source
from ov2_core.storage.files import Store
from pipelines.generate_spatial_qa import generate_spatial_qa
from pipelines.options import RunOptions

INLINE = RunOptions(workers=0, progress="off")

WRITERS = {
    "plain": write_plain,
    "arkitscenes": write_arkit,
    "ca-1m": write_ca1m,
    "scannet": write_scannet,
    "scannet++": write_scannetpp,
    "hypersim": write_hypersim,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_layout_gives_back_the_geometry(tmp_path, name: str) -> None:
    scene = hand_scene()
    source = open_source(str(WRITERS[name](tmp_path, scene)))
    assert source.reader is not None
    assert source.reader.name == name
    assert source.count == 1
    read = source.load(0)
    np.testing.assert_allclose(read.world_from_camera_F44, scene.world_from_camera_F44, atol=1e-5)
    np.testing.assert_allclose(read.intrinsics_F4, scene.intrinsics_F4, atol=1e-3)
    np.testing.assert_allclose(read.depth_FHW, scene.depth_FHW, atol=0.001)
    labels = {thing.label: thing for thing in read.record.objects}
    assert set(labels) == {"crate", "cabinet", "table", "book"}
    slack = 0.25 if name == "scannet" else 1e-4  # its boxes hold only what the frames show
    for thing in scene.record.objects:
        found = labels[thing.label].box
        np.testing.assert_allclose(found.center_xyz_m, thing.box.center_xyz_m, atol=slack)
    same = (read.masks_FHW > 0) == (scene.masks_FHW > 0)
    assert same.mean() > 0.98
    for frame in range(2):
        for i, thing in enumerate(scene.record.objects):
            row, column = divmod(int(scene.interior(frame, thing.id)[0]), 320)
            assert read.objects[int(read.masks_FHW[frame, row, column])].label == thing.label, (frame, i)


@pytest.mark.parametrize("name", WRITERS)
def test_a_layout_yields_proven_questions(tmp_path, name: str) -> None:
    scene = open_source(str(WRITERS[name](tmp_path, hand_scene()))).load(0)
    found = generate_questions(scene, SpatialRecipe(questions_per_type=4))
    assert len({question.type for question in found.questions}) >= 12
    evidence = Evidence(scene)
    for question in found.questions:
        prove(evidence, question)


def test_davis_gives_masks_tracks_and_the_types_that_need_no_depth(tmp_path) -> None:
    scene = open_source(str(write_davis(tmp_path, hand_scene()))).load(0)
    assert scene.record.kind == "masks"
    np.testing.assert_array_equal(scene.masks_FHW, hand_scene().masks_FHW)
    assert [frame.time_seconds for frame in scene.record.frames] == [0.0, 0.5]
    types = {question.type for question in generate_questions(scene, SpatialRecipe()).questions}
    assert types >= {"point_object", "box_object", "track_object", "track_count", "track_time"}
    assert not types & {"depth_point", "distance_objects", "camera_motion"}


def test_molmo_tracks_give_tracks_alone(tmp_path) -> None:
    scene = open_source(str(write_molmo(tmp_path / "rows"))).load(0)
    assert scene.record.kind == "tracks"
    assert len(scene.record.frames) == 12
    found = generate_questions(scene, SpatialRecipe(input="frames"))
    # Two dogs share the label, so none can be asked for by name; they can be counted.
    assert {question.type for question in found.questions} == {"track_count"}
    assert any(q.answer == "1" and "at 2.0 s" in q.question for q in found.questions)
    assert any(q.answer == "2" for q in found.questions)


def test_molmo_tracks_are_read_from_parquet_a_scene_a_row(tmp_path) -> None:
    source = open_source(str(write_molmo(tmp_path / "rows", parquet=True)))
    of_json = open_source(str(write_molmo(tmp_path / "json"))).load(0)
    assert source.count == 3
    scenes = [source.load(number) for number in (2, 0, 1)]
    assert scenes[1].record == of_json.record.model_copy(update={"id": "train-00000-0000000"})
    assert [thing.label for thing in scenes[0].record.objects] == ["cat"]
    store = Store(str(tmp_path / "run"))
    recipe = SpatialRecipe(input="frames", scenes_per_shard=1)
    summary = generate_spatial_qa(str(tmp_path / "rows"), store, recipe, INLINE)
    # The third row is a copy of the second and lies in another shard.
    assert (summary.report.num_scenes, summary.report.num_scenes_repeated) == (3, 1)
    assert summary.report.shipped["track_object"] >= 1
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other" / "x.parquet")
    with pytest.raises(ValueError, match="known layout"):
        open_source(str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("arkitscenes", "41000000_frames/lowres_wide.traj", "bad_pose"),
        ("arkitscenes", "41000000_frames/lowres_depth/41000000_101.000.png", "missing_depth"),
        ("scannet", "depth/30.png", "missing_depth"),
        ("ca-1m", "7000000000000.gt/RT.json", "bad_pose"),
        ("ca-1m", "7001000000000.gt/depth/K.json", "bad_intrinsics"),
        ("ca-1m", "7001000000000.gt/depth.png", "missing_depth"),
        ("ca-1m", "world.gt/instances.json", "bad_boxes"),
        ("scannet++", "iphone/depth/frame_000001.png", "missing_depth"),
        ("scannet++", "scans/segments_anno.json", "malformed_scene"),
        ("scannet", "pose/0.txt", "bad_pose"),
        ("hypersim", "images/scene_cam_00_geometry_hdf5/frame.0001.depth_meters.npy", "missing_depth"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name: str, damage: str, reason: str) -> None:
    source = open_source(str(WRITERS[name](tmp_path, hand_scene())))
    path = next(tmp_path.glob("*")) / damage
    path.write_text("1 0 0 0\n" * 4)
    with pytest.raises(BadItemError) as caught:
        source.load(0)
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", [*WRITERS, "davis", "hypersim-hdf5"])
def test_whatever_is_wrong_with_a_file_a_scene_is_read_or_refused(tmp_path, name: str) -> None:
    """Each file of the first frame and each that stands alone: gone, empty, noise, JSON of another shape."""
    write = {**WRITERS, "davis": write_davis, "hypersim-hdf5": write_hypersim_hdf5}[name]
    source = open_source(str(write(tmp_path, hand_scene())))
    paths = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    stages = []
    for path in paths[: len(paths) // 2 + 1] if len(paths) > 8 else paths:
        kept = path.read_bytes()
        for data in (None, b"", b"\x00\xff noise", b'[{"a": 1}]'):
            path.unlink() if data is None else path.write_bytes(data)
            try:
                source.load(0)
            except BadItemError as error:
                stages.append(error.stage)
        path.write_bytes(kept)
    assert len(stages) > len(paths) // 2
    assert set(stages) <= {"spatial", "probe"}
    source.load(0)


def test_frames_in_which_scannet_lost_track_are_left_out(tmp_path) -> None:
    source = open_source(str(write_scannet(tmp_path, hand_scene())))
    poses = tmp_path / "scene0000_00" / "pose"
    (poses / "0.txt").write_text("-inf -inf -inf -inf\n" * 4)
    assert [frame.rgb for frame in source.load(0).record.frames] == ["color/30.jpg"]
    (poses / "30.txt").write_text("-inf -inf -inf -inf\n" * 4)
    with pytest.raises(BadItemError, match="lost"):
        source.load(0)


def test_hypersim_poses_are_those_of_the_frame_numbers(tmp_path) -> None:
    scene = hand_scene()
    source = open_source(str(write_hypersim(tmp_path, scene)))
    camera = tmp_path / "ai_001_001" / "_detail" / "cam_00"
    np.save(camera / "camera_keyframe_frame_indices.npy", np.array([1, 0]))
    np.testing.assert_allclose(
        source.load(0).world_from_camera_F44[:, :3, 3], scene.world_from_camera_F44[::-1, :3, 3], atol=1e-9
    )


@pytest.mark.parametrize("write", [write_ca1m, write_scannetpp])
def test_pictures_that_are_no_files_are_written_by_the_run(tmp_path, write) -> None:
    """A tar of CA-1M; video and depth.bin of ScanNet++ (depth at 256 x 192)."""
    scene = hand_scene()
    folder = write(tmp_path / "in", scene, packed=True)
    source = open_source(str(folder))
    assert source.is_packed
    read = source.load(0)
    shown = read.rgb_FHW3[:, ::2, ::2] if write is write_ca1m else read.rgb_FHW3  # twice the depth's size
    assert shown.shape == scene.rgb_FHW3.shape
    assert np.abs(shown.astype(int) - scene.rgb_FHW3).mean() < (1 if write is write_ca1m else 10)  # the video is lossy
    store = Store(str(tmp_path / "run"))
    summary = generate_spatial_qa(str(folder), store, SpatialRecipe(questions_per_type=2), INLINE)
    assert summary.report.num_scenes_quarantined == 0
    items = list(import_spatial_qa(str(tmp_path / "run" / "records")))
    assert len(items) >= 12
    for item in items:
        assert item.record is not None
        assert all(Path(ref.uri).is_file() for ref in item.record.media)


def test_boxes_stand_upright_whatever_the_order_of_their_axes(tmp_path) -> None:
    read = open_source(str(write_ca1m(tmp_path, hand_scene()))).load(0)
    want = {thing.label: thing.box for thing in hand_scene().record.objects}
    for thing in read.record.objects:
        assert thing.box.world_from_box[2][2] == 1.0
        assert thing.box.size_xyz_m[2] == want[thing.label].size_xyz_m[2]
    assert read.supports == hand_scene().supports


def test_a_world_whose_z_points_down_is_refused(tmp_path) -> None:
    source = open_source(str(write_ca1m(tmp_path, hand_scene())))
    for path in (tmp_path / "42000000").glob("*.gt/RT.json"):
        path.write_text(json.dumps((np.diag([1.0, -1, -1, 1]) @ np.array(json.loads(path.read_text()))).tolist()))
    with pytest.raises(BadItemError, match="z is not up") as caught:
        source.load(0)
    assert caught.value.reason == "bad_pose"


def test_a_tar_that_was_cut_off_is_named(tmp_path) -> None:
    source = open_source(str(write_ca1m(tmp_path, hand_scene(), packed=True)))
    path = tmp_path / "ca1m-val-42000000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(BadItemError, match=r"ca1m-val-42000000\.tar"):
        source.load(0)


def test_arkitscenes_raw_set_keeps_its_frames_beside_the_annotation(tmp_path) -> None:
    read = open_source(str(write_arkit(tmp_path, hand_scene(), frames_folder=""))).load(0)
    np.testing.assert_allclose(read.world_from_camera_F44, hand_scene().world_from_camera_F44, atol=1e-5)


def test_hypersim_is_read_from_hdf5_with_the_names_of_its_classes(tmp_path) -> None:
    pytest.importorskip("h5py")
    scene = hand_scene()
    source = open_source(str(write_hypersim_hdf5(tmp_path, scene)))
    focal = 160 / np.tan(np.pi / 6)  # no intrinsics.json: 60 degrees
    read = source.load(0)
    np.testing.assert_allclose(read.intrinsics_F4, [[focal, focal, 160, 120]] * 2)
    np.testing.assert_allclose(read.world_from_camera_F44, scene.world_from_camera_F44, atol=1e-9)
    np.testing.assert_array_equal(read.masks_FHW, scene.masks_FHW)
    assert {thing.id: thing.label for thing in read.record.objects} == {1: "box", 2: "cabinet", 3: "table", 4: "books"}
    (tmp_path / "ai_001_001/_detail/cam_00/camera_keyframe_positions.hdf5").write_bytes(b"no")
    with pytest.raises(BadItemError, match="camera_keyframe_positions"):
        source.load(0)


def test_depth_bin_is_read_in_all_its_forms(tmp_path) -> None:
    depth = np.random.default_rng(1).integers(300, 5000, (3, 192, 256)).astype("<u2")
    depth[1, 50:] = 1234  # long runs
    metres = [np.frombuffer((d / 1000).astype("<f4").tobytes(), "<f4") for d in depth]
    raw = [zlib.compressobj(wbits=-15) for _ in metres]
    deflated = [c.compress(m.tobytes()) + c.flush() for c, m in zip(raw, metres, strict=True)]
    whole = zlib.compressobj(wbits=-15)

    def framed(blocks):
        return b"".join(len(b).to_bytes(4, "little") + b for b in blocks)

    forms = {
        "lz4": framed(lz4_stored(d.tobytes()) for d in depth),
        "deflate": framed(deflated),
        "whole": whole.compress(b"".join(m.tobytes() for m in metres)) + whole.flush(),
    }
    for name, data in forms.items():
        (tmp_path / name).write_bytes(data)
        found = read_depth_frames(str(tmp_path / name), [0, 2, 7])
        assert sorted(found) == [0, 2]
        np.testing.assert_allclose(found[2], depth[2] / 1000, atol=1e-6)
        assert count_depth_frames(str(tmp_path / name)) == (None if name == "whole" else 3)
    (tmp_path / "noise").write_bytes(b"\xff" * 5000)
    with pytest.raises(ValueError, match="noise"):
        read_depth_frames(str(tmp_path / "noise"), [0])


@pytest.mark.parametrize(
    ("block", "want"),
    [
        (b"\x40abcd", b"abcd"),
        (b"\x10a\x01\x00\x10b", b"aaaaab"),  # a match that overlaps itself: 4 bytes, 1 back
        (b"\x3fabc\x03\x00\x02\x10x", b"abc" * 8 + b"x"),  # 15 + 2 + 4 bytes, 3 back
    ],
)
def test_lz4_blocks_are_those_of_the_format(block: bytes, want: bytes) -> None:
    assert lz4_block(block, len(want)) == want
    for damaged in (block[:-1], block + b"\x00", b"\x10a\x09\x00" + block):
        with pytest.raises(ValueError):  # noqa: PT011
            lz4_block(damaged, len(want))


@pytest.mark.parametrize(
    ("rel", "remedy"),
    [
        ("scene0000_00/scene0000_00.sens", "SensReader"),
        ("data/0a1b2c3d4e/iphone/rgb.mkv", "name that folder"),
        ("0a1b2c3d4e/dslr/colmap/cameras.txt", "iPhone"),
        ("41000000/41000000_3dod_annotation.json", "download them"),
        ("3dod/Training/41000000/lowres_wide.traj", None),
        ("Training/41000000/41000000_frames/lowres_wide.traj", "Training and Validation"),
        ("ai_001_001/images/scene_cam_00_final_preview/x.jpg", "unpack the whole scene"),
        ("scene.json", "name the folder that holds"),
    ],
)
def test_a_folder_that_is_not_quite_one_names_the_remedy(tmp_path, rel: str, remedy: str | None) -> None:
    path = tmp_path / rel
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    with pytest.raises(ValueError, match=remedy or "known layout") as caught:
        open_source(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("text", ["procedural:0", "procedural:x", "procedural", "/nowhere/at/all"])
def test_a_source_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--scenes"):
        open_source(text)


def test_a_folder_of_no_known_layout_is_refused(tmp_path) -> None:
    (tmp_path / "holiday.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"known layout.*holiday\.txt"):
        open_source(str(tmp_path))
