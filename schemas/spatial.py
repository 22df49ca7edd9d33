"""Scenes with geometry, and the questions made of them (docs/spatial.md).

Units: metres, radians, pixels, seconds. Frames of reference, all right-handed:
- world: z up, the floor is level;
- camera: x right, y down, z forward (into the scene);
- box: its own axes; `size_xyz_m` are full edge lengths along them.
A matrix `a_from_b` takes a column of b's coordinates to a's. Pixels: (0, 0) is the top left corner of the top left pixel, whose
centre is (0.5, 0.5). Depth is the z of the camera's frame, not the length of the ray; 0 says unknown.
"""

from typing import Annotated, Literal

from pydantic import Field

from schemas.record import Record

Vector2 = Annotated[list[float], Field(min_length=2, max_length=2)]
Vector3 = Annotated[list[float], Field(min_length=3, max_length=3)]
Matrix3 = Annotated[list[Vector3], Field(min_length=3, max_length=3)]
Row4 = Annotated[list[float], Field(min_length=4, max_length=4)]
Matrix4 = Annotated[list[Row4], Field(min_length=4, max_length=4)]

SceneKind = Literal["rgbd", "masks", "tracks"]
"""rgbd: depth, intrinsics and pose in every frame. masks: instance masks alone. tracks: points over time alone."""
Difficulty = Literal["easy", "medium", "hard"]
InputForm = Literal["stills", "frames", "codec"]
"""What a question is shown with: stills of its frames; or the scene's video, as uniform frames or as a codec stream."""


class SceneFrame(Record):
    """One frame. Paths are relative to the scene's file, or absolute, or URLs."""

    rgb: str
    time_seconds: float = Field(ge=0)
    depth: str | None = None
    """16-bit PNG in units of depth_unit_m, or float32 .npy [H, W] in metres."""
    masks: str | None = None
    """16-bit PNG of object ids, 0 where there is none."""
    intrinsics_px: Row4 | None = None
    """fx, fy, cx, cy."""
    world_from_camera: Matrix4 | None = None


class OrientedBox(Record):
    """A box in the world."""

    center_xyz_m: Vector3
    size_xyz_m: Vector3
    world_from_box: Matrix3
    """Rotation; its columns are the box's axes."""


class SceneObject(Record):
    """A thing in the scene."""

    id: int = Field(ge=1)
    label: str = Field(min_length=1)
    """A noun: "chair"."""
    phrase: str | None = None
    """What tells it from others of its label: "red chair"."""
    box: OrientedBox | None = None
    """Of a moving object: in the first frame."""
    moving: bool = False


class TrackPlace(Record):
    """Where a tracked object is in one frame."""

    xy_px: Vector2 | None = None
    """A point on it, where it is seen."""
    center_xyz_m: Vector3 | None = None
    """Of its box, in the world."""


class SceneTrack(Record):
    """An object over time; one entry a frame, null where it is gone."""

    object_id: int = Field(ge=1)
    places: list[TrackPlace | None]


class SceneRoom(Record):
    """The room around it."""

    floor_polygon_xy_m: list[Vector2] = Field(min_length=3)
    floor_z_m: float = 0.0
    ceiling_z_m: float | None = None


class SceneRecord(Record):
    """scene.json."""

    id: str = Field(min_length=1)
    source: str
    kind: SceneKind
    width_px: int = Field(gt=0)
    height_px: int = Field(gt=0)
    frames: list[SceneFrame] = Field(min_length=1)
    objects: list[SceneObject] = Field(default_factory=list)
    tracks: list[SceneTrack] = Field(default_factory=list)
    room: SceneRoom | None = None
    depth_unit_m: float = Field(default=0.001, gt=0)
    video: str | None = None
    """The frames as one file; frame i is shown at its time_seconds."""


class SpatialQuestion(Record):
    """One line of RUN/records/*.jsonl; the importer `spatial-qa` reads it."""

    id: str
    scene_id: str
    type: str
    question: str
    choices: list[str] | None = None
    answer: str
    """A choice's letter, or text in a format of docs/spatial.md."""
    frames: list[str] | None = None
    video: str | None = None
    frame_indices: list[int]
    """Of the scene's frames, as shown; "frame 1" is the first of them."""
    difficulty: Difficulty
    tags: list[str] = Field(default_factory=list)


class SceneYield(Record):
    """What became of a scene, in its shard."""

    scene_id: str
    fingerprint: str = ""
    """Of what it shows; equal for copies. Of several in a run the first ships."""
    num_drafted: int = Field(ge=0)
    shipped: dict[str, int]
    """Questions by type."""
    dropped: dict[str, int]
    """"type: reason" to how many."""


class SpatialReport(Record):
    """RUN/report.json."""

    num_scenes: int
    num_scenes_quarantined: int
    num_scenes_filtered: int
    num_scenes_repeated: int = 0
    """Committed, but copies of scenes in other shards: none of their questions ship."""
    num_questions: int
    num_drafted: int
    shipped: dict[str, int]
    dropped: dict[str, dict[str, int]]
    """By type and reason."""
    quarantined: dict[str, int]
    answers: dict[str, dict[str, int]]
    """By type, of choices: the letter; of others the twelve most frequent answers."""
    difficulties: dict[str, int]
    max_share: float
    """Of the most frequent type."""
