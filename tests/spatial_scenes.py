"""Scenes for tests: one laid out by hand, whose answers can be worked out on paper, and folders in the layouts of the readers."""

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ov2_core.spatial.geometry import look_at, unproject
from ov2_core.spatial.procedural.render import BOX, render
from ov2_core.spatial.readers.boxes import resize_nearest
from ov2_core.spatial.scene import Scene, checked_scene
from ov2_core.spatial.scene_files import _mp4, write_scene
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


def write_arkit(root: Path, scene: Scene, *, frames_folder: str = "41000000_frames") -> Path:
    """ARKitScenes: camera_from_world as axis-angle, boxes with an axis a row, no masks; frames_folder "" is the raw set's."""
    scan = root / "41000000"
    folder = scan / frames_folder
    lines = []
    for i, frame in enumerate(scene.record.frames):
        name = f"41000000_{100 + frame.time_seconds:.3f}"
        save_rgb(folder / "lowres_wide" / f"{name}.png", scene.rgb_FHW3[i])
        save_png16(folder / "lowres_depth" / f"{name}.png", np.rint(scene.depth_FHW[i] * 1000))
        fx, fy, cx, cy = frame.intrinsics_px
        (folder / "lowres_wide_intrinsics").mkdir(exist_ok=True)
        near = f"41000000_{100 + frame.time_seconds + 0.001 * (i % 2):.3f}"  # a millisecond beside, as some are
        (folder / "lowres_wide_intrinsics" / f"{near}.pincam").write_text(f"320 240 {fx} {fy} {cx} {cy}\n")
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
    (scan / "41000000_3dod_annotation.json").write_text(json.dumps({"data": data}))
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


def write_ca1m(root: Path, scene: Scene, *, packed: bool = False) -> Path:
    """CA-1M: stamps in nanoseconds, pictures twice as large as the scanner's depth, boxes lying on a side; a tar if packed."""
    folder = root / "42000000"
    for i, frame in enumerate(scene.record.frames):
        stamp = 7_000_000_000_000 + round(frame.time_seconds * 1e9)
        save_rgb(folder / f"{stamp}.wide" / "image.png", scene.rgb_FHW3[i].repeat(2, axis=0).repeat(2, axis=1))
        save_png16(folder / f"{stamp}.gt" / "depth.png", np.rint(scene.depth_FHW[i] * 1000))
        fx, fy, cx, cy = frame.intrinsics_px
        (folder / f"{stamp}.gt" / "depth").mkdir()
        (folder / f"{stamp}.gt" / "depth" / "K.json").write_text(json.dumps([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
        (folder / f"{stamp}.gt" / "RT.json").write_text(json.dumps(frame.world_from_camera))
    x, y, z = 1, 2, 0  # the box's own third axis lies level
    rows = [
        {
            "id": f"id-{thing.id}",
            "category": thing.label,
            "position": thing.box.center_xyz_m,
            "scale": [thing.box.size_xyz_m[k] for k in (x, y, z)],
            "R": np.array(thing.box.world_from_box)[:, [x, y, z]].tolist(),
        }
        for thing in scene.record.objects
    ]
    rows += [
        {"id": f"w{k}", "category": label, "position": [0, 0, 1.4], "scale": [9, 9, 9], "R": np.eye(3).tolist()}
        for k, label in enumerate(["wall", "door_frame", "object"])
    ]
    (folder / "world.gt").mkdir()
    (folder / "world.gt" / "instances.json").write_text(json.dumps(rows))
    if packed:
        with tarfile.open(root / "ca1m-val-42000000.tar", "w") as tar:
            tar.add(folder, "42000000")
        shutil.rmtree(folder)
    return root


def write_scannetpp(root: Path, scene: Scene, *, packed: bool = False) -> Path:
    """ScanNet++: intrinsics of 1920 x 1440, boxes with an axis a row; packed: a video and depth.bin of 256 x 192."""
    folder = root / "0a1b2c3d4e"
    (folder / "scans").mkdir(parents=True)
    (folder / "iphone").mkdir()
    poses = {}
    for i, frame in enumerate(scene.record.frames):
        name = f"frame_{i:06d}"
        fx, fy, cx, cy = np.array(frame.intrinsics_px) * 1920 / 320
        poses[name] = {
            "timestamp": 900.0 + frame.time_seconds,
            "pose": np.eye(4).tolist(),
            "aligned_pose": frame.world_from_camera,
            "intrinsic": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]],
        }
        if not packed:
            save_rgb(folder / "iphone" / "rgb" / f"{name}.jpg", scene.rgb_FHW3[i])
            save_png16(folder / "iphone" / "depth" / f"{name}.png", np.rint(scene.depth_FHW[i] * 1000))
    if packed:
        (folder / "iphone" / "rgb.mp4").write_bytes(_mp4(scene.rgb_FHW3, [0.0, 1 / 60]))
        blocks = [
            lz4_stored(np.rint(resize_nearest(depth, 192, 256) * 1000).astype("<u2").tobytes())
            for depth in scene.depth_FHW
        ]
        packed_depth = b"".join(len(block).to_bytes(4, "little") + block for block in blocks)
        (folder / "iphone" / "depth.bin").write_bytes(packed_depth)
    (folder / "iphone" / "pose_intrinsic_imu.json").write_text(json.dumps(poses))
    groups = [
        {
            "id": thing.id,
            "objectId": thing.id,
            "label": thing.label,
            "segments": [],
            "obb": {
                "centroid": thing.box.center_xyz_m,
                "axesLengths": thing.box.size_xyz_m,
                "normalizedAxes": np.array(thing.box.world_from_box).T.ravel().tolist(),
            },
        }
        for thing in scene.record.objects
    ]
    (folder / "scans" / "segments_anno.json").write_text(json.dumps({"segGroups": groups}))
    return root


def lz4_stored(data: bytes) -> bytes:
    """An LZ4 block of one run of literals."""
    rest, count = len(data) - 15, b""
    while rest >= 255:
        rest, count = rest - 255, count + b"\xff"
    return b"\xf0" + count + bytes([rest]) + data


def write_hypersim(root: Path, scene: Scene) -> Path:
    """Hypersim converted to .npy, with intrinsics and labels of ours beside it."""
    write_hypersim_hdf5(root, scene, save=lambda path, array: np.save(f"{path}.npy", array))
    folder = root / "ai_001_001" / "_detail"
    keys = ("fx", "fy", "cx", "cy")
    intrinsics = dict(zip(keys, scene.record.frames[0].intrinsics_px, strict=True))
    (folder / "cam_00" / "intrinsics.json").write_text(json.dumps(intrinsics))
    (folder / "mesh" / "labels.json").write_text(json.dumps({str(t.id): t.label for t in scene.record.objects}))
    return root


def save_hdf5(path: Path, array: np.ndarray) -> None:
    import h5py

    with h5py.File(f"{path}.hdf5", "w") as file:
        file["dataset"] = array


def write_hypersim_hdf5(root: Path, scene: Scene, *, save: Callable[[Path, np.ndarray], None] = save_hdf5) -> Path:
    """Hypersim: asset units of 1 cm, a camera with y up that looks along -z, lengths of rays for depth, NYU40 numbers."""
    folder = root / "ai_001_001"
    flip, scale = np.diag([1.0, -1.0, -1.0]), 0.01
    poses = np.array([frame.world_from_camera for frame in scene.record.frames])
    camera, mesh = folder / "_detail" / "cam_00", folder / "_detail" / "mesh"
    camera.mkdir(parents=True)
    mesh.mkdir()
    (folder / "_detail" / "metadata_scene.csv").write_text(
        "parameter_name,parameter_value\nmeters_per_asset_unit,0.01\n"
    )
    save(camera / "camera_keyframe_positions", poses[:, :3, 3] / scale)
    save(camera / "camera_keyframe_orientations", poses[:, :3, :3] @ flip)
    rows, columns = np.mgrid[:240, :320]
    rays = unproject(HAND_INTRINSICS, np.stack([columns + 0.5, rows + 0.5], axis=-1), np.ones((240, 320)))
    for i in range(scene.num_frames):
        save_rgb(folder / "images/scene_cam_00_final_preview" / f"frame.{i:04d}.color.jpg", scene.rgb_FHW3[i])
        geometry = folder / "images/scene_cam_00_geometry_hdf5"
        geometry.mkdir(exist_ok=True)
        mask = scene.masks_FHW[i]
        save(geometry / f"frame.{i:04d}.depth_meters", scene.depth_FHW[i] * np.linalg.norm(rays, axis=-1))
        save(geometry / f"frame.{i:04d}.semantic_instance", np.where(mask > 0, mask, -1))
        save(geometry / f"frame.{i:04d}.semantic", np.array([1, 29, 3, 7, 23])[mask])
    boxes = [None, *(thing.box for thing in scene.record.objects)]
    name = "metadata_semantic_instance_bounding_box_object_aligned_2d"
    inf = [np.inf] * 3
    save(mesh / f"{name}_positions", np.array([inf if b is None else np.array(b.center_xyz_m) / scale for b in boxes]))
    save(mesh / f"{name}_extents", np.array([inf if b is None else np.array(b.size_xyz_m) / scale for b in boxes]))
    save(mesh / f"{name}_orientations", np.array([np.eye(3) if b is None else b.world_from_box for b in boxes]))
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


def write_molmo(root: Path, *, parquet: bool = False) -> Path:
    """One row of Molmo2-VideoTrack: two dogs over 3 s, one leaves. As Parquet, behind it a single cat, twice."""
    root.mkdir(parents=True, exist_ok=True)
    row = {
        "id": "r1", "video": "v", "clip": "clip_1", "video_dataset": "set", "fps": 4.0, "start_frame": 8, "end_frame": 19,
        "w": 640, "h": 360, "exp": "brown dog", "mask_id": ["a", "b"],
        "points": [
            {"object_id": "a", "points": [[10.0 * k + 20, 100.0] for k in range(12)]},
            {"object_id": "b", "points": [[300.0, 50.0 + k] if k < 6 else [] for k in range(12)]},
        ],
    }  # fmt: skip
    if parquet:
        other = {**row, "id": "r2", "exp": "cat", "mask_id": ["a"], "points": row["points"][:1]}
        pq.write_table(pa.Table.from_pylist([row, other, other]), root / "train-00000.parquet", row_group_size=2)
    else:
        (root / "r1.track.json").write_text(json.dumps(row))
    return root
