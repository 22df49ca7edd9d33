"""Readers: one scene written in each documented layout comes back with the same geometry, and its questions are proven."""

import numpy as np
import pytest
from spatial_scenes import (
    hand_scene,
    write_arkit,
    write_davis,
    write_hypersim,
    write_molmo,
    write_plain,
    write_scannet,
)

from ov2_core.errors import BadItemError
from ov2_core.spatial.checker import Evidence, prove
from ov2_core.spatial.generate import generate_questions
from ov2_core.spatial.recipe import SpatialRecipe
from ov2_core.spatial.sources import open_source

WRITERS = {"plain": write_plain, "arkitscenes": write_arkit, "scannet": write_scannet, "hypersim": write_hypersim}


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


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("arkitscenes", "lowres_wide.traj", "bad_pose"),
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


@pytest.mark.parametrize("text", ["procedural:0", "procedural:x", "procedural", "/nowhere/at/all"])
def test_a_source_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--scenes"):
        open_source(text)


def test_a_folder_of_no_known_layout_is_refused(tmp_path) -> None:
    (tmp_path / "holiday.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"known layout.*holiday\.txt"):
        open_source(str(tmp_path))
