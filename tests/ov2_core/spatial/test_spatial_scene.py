"""What makes a scene untrustworthy, and what a trusted one says."""

import dataclasses
import json

import numpy as np
import pytest
from spatial_scenes import hand_scene, write_plain

from ov2_core.errors import BadItemError
from ov2_core.media.probe import probe_video
from ov2_core.spatial.procedural import make_scene
from ov2_core.spatial.scene import Scene, checked_scene
from ov2_core.spatial.scene_files import _mp4, read_scene
from ov2_core.spatial.sources import fingerprint, open_source


def changed(scene: Scene, edit) -> Scene:
    """The scene with its record edited as plain JSON, and not validated anew."""
    data = scene.record.model_dump()
    edit(data)
    return dataclasses.replace(scene, record=type(scene.record).model_construct(**_records(scene, data)))


def _records(scene: Scene, data: dict) -> dict:
    def build(cls, value):
        return cls.model_construct(**value)

    objects = []
    for thing, raw in zip(scene.record.objects, data["objects"], strict=True):
        box = None if raw["box"] is None else build(type(thing.box), raw["box"])
        objects.append(build(type(thing), {**raw, "box": box}))
    frames = [build(type(scene.record.frames[0]), raw) for raw in data["frames"]]
    return {**data, "objects": objects, "frames": frames, "tracks": scene.record.tracks, "room": scene.record.room}


def test_a_hand_made_scene_is_trusted() -> None:
    scene = hand_scene()
    assert set(scene.names.values()) == {"crate", "cabinet", "table", "book"}
    assert scene.supports == {4: (3, "on")}
    assert scene.kind_of == {1: "standing", 2: "standing", 3: "standing", 4: "carried"}


BROKEN = {
    "mirrored pose": ("bad_pose", lambda d: d["frames"][1]["world_from_camera"].__setitem__(0, [-1.0, 0, 0, 0.5])),
    "missing pose": ("bad_pose", lambda d: d["frames"][0].__setitem__("world_from_camera", None)),
    "NaN pose": ("bad_pose", lambda d: d["frames"][0]["world_from_camera"][0].__setitem__(3, float("nan"))),
    "scaled pose": ("bad_pose", lambda d: d["frames"][0]["world_from_camera"][0].__setitem__(0, 2.0)),
    "missing intrinsics": ("bad_intrinsics", lambda d: d["frames"][0].__setitem__("intrinsics_px", None)),
    "zero focal length": (
        "bad_intrinsics",
        lambda d: d["frames"][0].__setitem__("intrinsics_px", [0.0, 200, 160, 120]),
    ),
    "NaN box": ("bad_boxes", lambda d: d["objects"][0]["box"]["center_xyz_m"].__setitem__(0, float("nan"))),
    "flat box": ("bad_boxes", lambda d: d["objects"][0]["box"]["size_xyz_m"].__setitem__(2, 0.0)),
    "sheared box": ("bad_boxes", lambda d: d["objects"][0]["box"]["world_from_box"].__setitem__(0, [1.0, 0.5, 0.0])),
    "repeated id": ("malformed_scene", lambda d: d["objects"][1].__setitem__("id", 1)),
    "times that go back": ("malformed_scene", lambda d: d["frames"][1].__setitem__("time_seconds", 0.0)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_scene_is_refused_with_its_reason(name: str) -> None:
    reason, edit = BROKEN[name]
    with pytest.raises(BadItemError) as caught:
        checked_scene(changed(hand_scene(), edit))
    assert caught.value.reason == reason
    assert "hand" in str(caught.value)
    assert caught.value.stage == "spatial"


def test_depth_that_is_missing_nan_or_mostly_unknown_is_refused() -> None:
    scene = hand_scene()
    empty = np.zeros_like(scene.depth_FHW)
    nan = scene.depth_FHW.copy()
    nan[0, 3, 4] = np.nan
    for depth in (None, empty, nan):
        with pytest.raises(BadItemError) as caught:
            checked_scene(dataclasses.replace(scene, depth_FHW=depth))
        assert caught.value.reason == "missing_depth"


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("frames", 0, "world_from_camera", 0, 0), "NaN", "bad_pose"),
        (("frames", 0, "intrinsics_px", 0), "NaN", "bad_intrinsics"),
        (("objects", 0, "box", "size_xyz_m", 0), "NaN", "bad_boxes"),
        (("objects", 0, "label"), '""', "malformed_scene"),
    ],
)
def test_numbers_that_are_none_in_a_file_are_named(tmp_path, path, value, reason) -> None:
    folder = write_plain(tmp_path, hand_scene()) / "hand"
    data = json.loads((folder / "scene.json").read_text())
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = "@@"
    (folder / "scene.json").write_text(json.dumps(data).replace('"@@"', value))
    with pytest.raises(BadItemError) as caught:
        read_scene(str(folder))
    assert caught.value.reason == reason
    assert path[0] in str(caught.value)


def test_what_is_written_is_read_again(tmp_path) -> None:
    scene = make_scene(3, 1)
    write_plain(tmp_path, scene)
    source = open_source(str(tmp_path))
    again = source.load(0)
    assert again.record == scene.record
    np.testing.assert_array_equal(again.masks_FHW, scene.masks_FHW)
    np.testing.assert_array_equal(again.depth_FHW, scene.depth_FHW)  # whole millimetres
    assert fingerprint(again) != fingerprint(make_scene(3, 2))


def test_a_missing_depth_file_is_named(tmp_path) -> None:
    folder = write_plain(tmp_path, hand_scene()) / "hand"
    (folder / "depth" / "001.png").unlink()
    with pytest.raises(BadItemError, match=r"001\.png") as caught:
        read_scene(str(folder))
    assert caught.value.reason == "missing_depth"


def test_a_room_is_the_same_whenever_it_is_made_and_differs_by_number() -> None:
    first, again, other = make_scene(9, 4), make_scene(9, 4), make_scene(9, 5)
    assert first.record == again.record
    np.testing.assert_array_equal(first.rgb_FHW3, again.rgb_FHW3)
    np.testing.assert_array_equal(first.depth_FHW, again.depth_FHW)
    assert first.record.objects != other.record.objects


def test_depth_of_a_room_is_that_of_rays_cast_one_by_one() -> None:
    """A naive loop over the solids of the hand-made scene, in plain numpy, at a grid of pixels."""
    scene = hand_scene()
    boxes = [(np.array(t.box.center_xyz_m), np.array(t.box.size_xyz_m) / 2, t.id) for t in scene.record.objects]
    low, high = np.array([-3.0, -3.5, 0.0]), np.array([3.0, 3.5, 2.8])
    for frame in range(2):
        pose = scene.world_from_camera_F44[frame]
        for row in range(3, 240, 29):
            for column in range(2, 320, 31):
                ray = pose[:3, :3] @ np.array([(column + 0.5 - 160) / 200, (row + 0.5 - 120) / 200, 1.0])
                eye = pose[:3, 3]
                with np.errstate(divide="ignore"):
                    out = np.maximum((low - eye) / ray, (high - eye) / ray).min()
                best, number = out, 0
                for center, half, id_ in boxes:
                    with np.errstate(divide="ignore"):
                        a, b = (center - half - eye) / ray, (center + half - eye) / ray
                    near, far = np.minimum(a, b).max(), np.maximum(a, b).min()
                    if near <= far and 0 < near < best:
                        best, number = near, id_
                assert scene.depth_FHW[frame, row, column] == pytest.approx(best, rel=1e-5)
                assert scene.masks_FHW[frame, row, column] == number


def test_every_visible_point_of_a_room_lies_in_the_box_of_its_object() -> None:
    from ov2_core.spatial.checker import Evidence

    for number in range(3):
        scene = make_scene(5, number)
        evidence = Evidence(scene)
        for thing in scene.record.objects:
            for frame in range(scene.num_frames):
                points = evidence.points(frame, thing.id)
                if len(points):
                    center = scene.track_centers(thing.id)[frame] if thing.moving else None
                    corners = evidence.corners(thing.id, center=center)
                    assert evidence.holds(corners, points, slack=0.002).all(), (thing.label, frame)


def test_tracks_of_a_room_lie_on_their_masks() -> None:
    for number in range(4):
        scene = make_scene(6, number)
        for track in scene.record.tracks:
            for frame, place in enumerate(track.places):
                pixels = int((scene.masks_FHW[frame] == track.object_id).sum())
                assert (place.xy_px is not None) == (pixels >= 12)
                if place.xy_px is not None:
                    column, row = map(int, place.xy_px)
                    assert scene.masks_FHW[frame, row, column] == track.object_id


@pytest.mark.parametrize("times", [[0.0, 0.5, 1.0], [0.0, 0.133, 2.5]])
def test_a_scenes_video_shows_its_frames_at_their_times(tmp_path, times) -> None:
    images = make_scene(3, 1).rgb_FHW3[:3]
    (tmp_path / "video.mp4").write_bytes(_mp4(images, times))
    np.testing.assert_allclose(probe_video(str(tmp_path / "video.mp4")).seconds_T, times, atol=1e-3)
