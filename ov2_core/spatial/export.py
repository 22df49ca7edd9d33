"""A scene of any layout to a folder of our plain format."""

import os

from ov2_core.spatial.remote import is_remote, read_scene_file
from ov2_core.spatial.scene import Scene
from ov2_core.spatial.scene_files import write_scene


def export_scene(scene: Scene, folder: str) -> Scene:
    """Frames are copied as they are; depth and masks are written as our PNGs. Returns the scene as it lies there."""
    record = scene.record
    frames = []
    for i, frame in enumerate(record.frames):
        suffix = os.path.splitext(frame.rgb)[1] or ".jpg"
        rgb = frame.rgb
        if "://" not in rgb and scene.folder is not None:
            rgb = f"frames/{i:03d}{suffix}"
            target = os.path.join(folder, rgb)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "wb") as file:
                file.write(read_scene_file(scene.folder, frame.rgb))
        frames.append(
            frame.model_copy(
                update={
                    "rgb": rgb,
                    "depth": None if scene.depth_FHW is None else f"depth/{i:03d}.png",
                    "masks": None if scene.masks_FHW is None else f"masks/{i:03d}.png",
                }
            )
        )
    video = record.video
    if video is not None and "://" not in video and scene.folder is not None:
        video = f"{scene.folder}/{video}" if is_remote(scene.folder) else os.path.abspath(f"{scene.folder}/{video}")
    changed = record.model_copy(update={"frames": frames, "depth_unit_m": 0.001, "video": video})
    return write_scene(Scene(record=changed, depth_FHW=scene.depth_FHW, masks_FHW=scene.masks_FHW), folder)
