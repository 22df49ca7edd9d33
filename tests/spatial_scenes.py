"""Scenes for tests: one laid out by hand, whose answers can be worked out on paper, and folders in the layouts of the readers."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ov2_core.spatial.geometry import look_at, unproject
from ov2_core.spatial.procedural.render import BOX, render
from ov2_core.spatial.scene import Scene, checked_scene
from ov2_core.spatial.scene_files import write_scene
from schemas.spatial import OrientedBox, SceneFrame, SceneObject, SceneRecord, SceneRoom

HAND_OBJECTS = {
    # name: centre x, y, z and edge lengths, metres. The camera stands at (0, -3) and looks along +y.
    "crate": ((-1.5, 0.0, 0.4), (0.8, 0.8, 0.8)),
    "cabinet": ((1.5, 0.0, 0.5), (1.0, 0.6, 1.0)),
    "table": ((0.0, 2.0, 0.35), (1.0, 1.0, 0.7)),
    "book": ((0.1, 2.0, 0.75), (0.3, 0.2, 0.1)),
}
HAND_INTRINSICS = [200.0, 200.0, 160.0, 120.0]


def hand_scene() -> Scene:
    """Two frames: at (0, -3, 1.5) along +y, slightly down; and 0.5 m to the right and 1 m ahead of that, same heading."""
    eyes = [(0.0, -3.0, 1.5), (0.5, -2.0, 1.5)]
    poses = [look_at(eye, (eye[0], eye[1] + 3.0, 0.9)) for eye in eyes]
    names = list(HAND_OBJECTS)
    centers = np.array([HAND_OBJECTS[name][0] for name in names])
    halves = np.array([HAND_OBJECTS[name][1] for name in names]) / 2
    colors = np.array([[200, 60, 50], [50, 90, 200], [60, 150, 70], [230, 200, 60]], np.float64)
    numbers = np.arange(1, len(names) + 1)
    room = np.array([-3.0, -3.5, 0.0, 3.0, 3.5, 2.8])
    walls = np.array([[150, 112, 78], [188, 184, 170], [222, 222, 220]], np.float64)
    images = [
        render(
            np.array(HAND_INTRINSICS),
            np.ascontiguousarray(pose[:3, :3]),
            np.ascontiguousarray(pose[:3, 3]),
            np.full(len(names), BOX),
            centers,
            halves,
            np.zeros(len(names)),
            colors,
            np.zeros(len(names), np.int64),
            numbers,
            room,
            walls,
            320,
            240,
        )
        for pose in poses
    ]
    record = SceneRecord(
        id="hand",
        source="test",
        kind="rgbd",
        width_px=320,
        height_px=240,
        frames=[
            SceneFrame(
                rgb=f"frames/{i:03d}.jpg",
                time_seconds=float(i),
                depth=f"depth/{i:03d}.png",
                masks=f"masks/{i:03d}.png",
                intrinsics_px=HAND_INTRINSICS,
                world_from_camera=pose.tolist(),
            )
            for i, pose in enumerate(poses)
        ],
        objects=[
            SceneObject(
                id=int(number),
                label=name,
                box=OrientedBox(
                    center_xyz_m=list(HAND_OBJECTS[name][0]),
                    size_xyz_m=list(HAND_OBJECTS[name][1]),
                    world_from_box=np.eye(3).tolist(),
                ),
            )
            for number, name in zip(numbers, names, strict=True)
        ],
        room=SceneRoom(floor_polygon_xy_m=[[-3, -3.5], [3, -3.5], [3, 3.5], [-3, 3.5]], floor_z_m=0.0, ceiling_z_m=2.8),
    )
    depth, masks, rgb = (np.stack([image[k] for image in images]) for k in range(3))
    return checked_scene(Scene(record=record, depth_FHW=depth, masks_FHW=masks, rgb_FHW3=rgb))


def save_png16(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint16)).save(path)


def save_rgb(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_plain(root: Path, scene: Scene) -> Path:
    write_scene(scene, str(root / scene.id))
    return root


def write_arkit(root: Path, scene: Scene) -> Path:
    """ARKitScenes: camera_from_world as axis-angle, boxes with an axis a row, no masks."""
    folder = root / "41000000"
    lines = []
    for i, frame in enumerate(scene.record.frames):
        name = f"41000000_{100 + frame.time_seconds:.3f}"
        save_rgb(folder / "lowres_wide" / f"{name}.png", scene.rgb_FHW3[i])
        save_png16(folder / "lowres_depth" / f"{name}.png", np.rint(scene.depth_FHW[i] * 1000))
        fx, fy, cx, cy = frame.intrinsics_px
        (folder / "lowres_wide_intrinsics").mkdir(exist_ok=True)
        (folder / "lowres_wide_intrinsics" / f"{name}.pincam").write_text(f"320 240 {fx} {fy} {cx} {cy}\n")
        inverse = np.linalg.inv(np.array(frame.world_from_camera))
        angle = float(np.arccos((np.trace(inverse[:3, :3]) - 1) / 2))
        r = inverse[:3, :3]
        axis = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]]) / (2 * np.sin(angle))
        numbers = [100 + frame.time_seconds + 0.01, *(axis * angle), *inverse[:3, 3]]
        lines.append(" ".join(f"{n:.9f}" for n in numbers))
    (folder / "lowres_wide.traj").write_text("\n".join(lines) + "\n")
    data = [
        {
            "label": thing.label,
            "segments": {
                "obbAligned": {
                    "centroid": thing.box.center_xyz_m,
                    "axesLengths": thing.box.size_xyz_m,
                    "normalizedAxes": np.array(thing.box.world_from_box).T.ravel().tolist(),
                }
            },
        }
        for thing in scene.record.objects
    ]
    (folder / "41000000_3dod_annotation.json").write_text(json.dumps({"data": data}))
    return root


def write_scannet(root: Path, scene: Scene) -> Path:
    """ScanNet: world_from_camera as text, instance ids from 1 in PNGs, labels in the aggregation with ids from 0."""
    folder = root / "scene0000_00"
    fx, fy, cx, cy = scene.record.frames[0].intrinsics_px
    (folder / "intrinsic").mkdir(parents=True)
    np.savetxt(
        folder / "intrinsic" / "intrinsic_depth.txt", [[fx, 0, cx, 0], [0, fy, cy, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    (folder / "pose").mkdir()
    for i, frame in enumerate(scene.record.frames):
        save_rgb(folder / "color" / f"{i * 30}.jpg", scene.rgb_FHW3[i])
        save_png16(folder / "depth" / f"{i * 30}.png", np.rint(scene.depth_FHW[i] * 1000))
        save_png16(folder / "instance-filt" / f"{i * 30}.png", scene.masks_FHW[i])
        np.savetxt(folder / "pose" / f"{i * 30}.txt", np.array(frame.world_from_camera))
    groups = [{"id": thing.id - 1, "label": thing.label} for thing in scene.record.objects]
    (folder / "scene0000_00.aggregation.json").write_text(json.dumps({"segGroups": groups}))
    return root


def write_hypersim(root: Path, scene: Scene) -> Path:
    """Hypersim: asset units of 1 cm, a camera with y up that looks along -z, lengths of rays for depth."""
    folder = root / "ai_001_001"
    flip, scale = np.diag([1.0, -1.0, -1.0]), 0.01
    poses = np.array([frame.world_from_camera for frame in scene.record.frames])
    camera, mesh = folder / "_detail" / "cam_00", folder / "_detail" / "mesh"
    camera.mkdir(parents=True)
    mesh.mkdir()
    (folder / "_detail" / "metadata_scene.csv").write_text(
        "parameter_name,parameter_value\nmeters_per_asset_unit,0.01\n"
    )
    np.save(camera / "camera_keyframe_positions.npy", poses[:, :3, 3] / scale)
    np.save(camera / "camera_keyframe_orientations.npy", poses[:, :3, :3] @ flip)
    keys = ("fx", "fy", "cx", "cy")
    (camera / "intrinsics.json").write_text(
        json.dumps(dict(zip(keys, scene.record.frames[0].intrinsics_px, strict=True)))
    )
    rows, columns = np.mgrid[:240, :320]
    rays = unproject(HAND_INTRINSICS, np.stack([columns + 0.5, rows + 0.5], axis=-1), np.ones((240, 320)))
    for i in range(scene.num_frames):
        save_rgb(folder / "images/scene_cam_00_final_preview" / f"frame.{i:04d}.color.jpg", scene.rgb_FHW3[i])
        geometry = folder / "images/scene_cam_00_geometry_hdf5"
        geometry.mkdir(exist_ok=True)
        np.save(geometry / f"frame.{i:04d}.depth_meters.npy", scene.depth_FHW[i] * np.linalg.norm(rays, axis=-1))
        np.save(
            geometry / f"frame.{i:04d}.semantic_instance.npy", np.where(scene.masks_FHW[i] > 0, scene.masks_FHW[i], -1)
        )
    boxes = [None, *(thing.box for thing in scene.record.objects)]
    name = "metadata_semantic_instance_bounding_box_object_aligned_2d"
    np.save(
        mesh / f"{name}_positions.npy", [[np.inf] * 3 if b is None else np.array(b.center_xyz_m) / scale for b in boxes]
    )
    np.save(
        mesh / f"{name}_extents.npy", [[np.inf] * 3 if b is None else np.array(b.size_xyz_m) / scale for b in boxes]
    )
    np.save(mesh / f"{name}_orientations.npy", [np.eye(3) if b is None else b.world_from_box for b in boxes])
    (mesh / "labels.json").write_text(json.dumps({str(t.id): t.label for t in scene.record.objects}))
    return root


def write_davis(root: Path, scene: Scene) -> Path:
    """DAVIS: palette PNGs of ids, JPEGs beside them."""
    for i in range(scene.num_frames):
        save_rgb(root / "JPEGImages/480p/room" / f"{i * 12:05d}.jpg", scene.rgb_FHW3[i])
        path = root / "Annotations/480p/room" / f"{i * 12:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(scene.masks_FHW[i].astype(np.uint8))
        image.putpalette([v for k in range(256) for v in (k, 255 - k, k // 2)])
        image.save(path)
    labels = {str(t.id): t.label for t in scene.record.objects}
    (root / "Annotations/480p/room/labels.json").write_text(json.dumps(labels))
    return root


def write_molmo(root: Path) -> Path:
    """One row of Molmo2-VideoTrack: two dogs over 3 s, one leaves."""
    root.mkdir(parents=True, exist_ok=True)
    row = {
        "id": "r1", "video": "v", "clip": "clip_1", "video_dataset": "set", "fps": 4.0, "start_frame": 8, "end_frame": 19,
        "w": 640, "h": 360, "exp": "brown dog", "mask_id": ["a", "b"],
        "points": [
            {"object_id": "a", "points": [[10.0 * k + 20, 100.0] for k in range(12)]},
            {"object_id": "b", "points": [[300.0, 50.0 + k] if k < 6 else [] for k in range(12)]},
        ],
    }  # fmt: skip
    (root / "r1.track.json").write_text(json.dumps(row))
    return root
