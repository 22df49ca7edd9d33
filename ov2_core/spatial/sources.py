"""Where scenes come from: `procedural:COUNT?seed=S`, a folder in one of the layouts of readers/, or a URL of our plain format.

Enters: a source as written on the command line. Leaves: numbered scenes, loaded one at a time, and a digest of what they are, which
a resume compares.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache

from ov2_core.errors import BadItemError
from ov2_core.spatial.procedural import make_scene
from ov2_core.spatial.readers import PLAIN, Reader, find_scenes
from ov2_core.spatial.remote import find_remote_scenes, is_remote, load_remote_scene
from ov2_core.spatial.scene import Scene, checked_scene
from ov2_core.spatial.scene_files import SCENE_JSON
from ov2_core.storage.files import Store, is_transient
from ov2_core.storage.local_file import ReadFailedError, fault_behind

WHOLE_BYTES = 64 << 20
_PROCEDURAL = re.compile(r"procedural:(\d+)(?:\?seed=(\d+))?")


@dataclass(frozen=True, slots=True)
class SceneSource:
    """Numbered scenes; picklable."""

    text: str
    """Absolute path or URL, as it goes into run.json."""
    digest: str
    names: tuple[str, ...]
    """Of a folder's scenes; empty for procedural ones."""
    count: int
    seed: int = 0
    reader: Reader | None = None

    @property
    def is_procedural(self) -> bool:
        return self.reader is None

    @property
    def is_packed(self) -> bool:
        """Whether pictures of some scene are no files yet, so that a run must write them."""
        return self.reader is None or any(self.reader.is_packed(os.path.join(self.text, name)) for name in self.names)

    @property
    def witness(self) -> str | None:
        """A path that every machine sees which sees the scenes; None: they are made, or lie at a URL."""
        return None if self.reader is None or is_remote(self.text) else os.path.join(self.text, self.names[0])

    def name(self, number: int) -> str:
        """Of scene `number`, from 0."""
        return f"proc-{self.seed}-{number:06d}" if self.reader is None else self.names[number]

    def load(self, number: int) -> Scene:
        """Scene `number`.

        Raises:
            BadItemError: it cannot be trusted.
            ReadFailedError: this machine cannot read it now.
        """
        if self.reader is None:
            return make_scene(self.seed, number)
        if is_remote(self.text):
            return load_remote_scene(f"{self.text}/{self.names[number]}")
        path = os.path.join(self.text, self.names[number])
        try:
            return checked_scene(self.reader.read(path))
        except (LookupError, TypeError, ValueError, AttributeError, EOFError, OSError, SyntaxError) as error:
            fault = fault_behind(error)
            if fault is not None:
                raise ReadFailedError(f"{path}: {fault}") from error
            if isinstance(error, BadItemError) or is_transient(error):
                raise
            message = (
                f"{path} is not laid out as {self.reader.name}: {type(error).__name__} {error}; see docs/spatial.md"
            )
            raise BadItemError("malformed_scene", message, stage="spatial") from error


def open_source(text: str) -> SceneSource:
    """The source of a text.

    Raises:
        ValueError: a folder that is missing or holds no scene of a known layout, or a count of 0.
    """
    found = _PROCEDURAL.fullmatch(text)
    if found:
        count, seed = int(found[1]), int(found[2] or 0)
        if not count:
            raise ValueError(f"--scenes {text}: expected at least one scene")
        digest = hashlib.sha256(f"procedural seed {seed} count {count}".encode()).hexdigest()
        return SceneSource(f"procedural:{count}?seed={seed}", digest, (), count, seed)
    if text.startswith("procedural"):
        raise ValueError(
            f"--scenes {text}: expected procedural:COUNT or procedural:COUNT?seed=S, e.g. procedural:100?seed=1"
        )
    if is_remote(text):
        return _open_remote(text.rstrip("/"))
    folder = os.path.abspath(text)
    if not os.path.isdir(folder):
        raise ValueError(f"--scenes {text}: no such folder, and not procedural:COUNT?seed=S")
    reader, names = find_scenes(folder)
    hashing = hashlib.sha256(reader.name.encode())
    for name in names:
        path = reader.index_file(os.path.join(folder, name))
        try:
            hashing.update(f"{name}\0".encode() + _digest_of(path))
        except OSError:
            hashing.update(f"{name}\0missing".encode())
    return SceneSource(folder, hashing.hexdigest(), tuple(names), len(names), reader=reader)


def _open_remote(url: str) -> SceneSource:
    names = find_remote_scenes(url)
    store = Store(url)
    hashing = hashlib.sha256(PLAIN.name.encode())
    for name in names:
        hashing.update(f"{name}\0".encode() + hashlib.sha256(store.read_bytes(f"{name}/{SCENE_JSON}")).digest())
    return SceneSource(url, hashing.hexdigest(), tuple(names), len(names), reader=PLAIN)


def _digest_of(path: str) -> bytes:
    """sha256 of a file; of a large one (a tar of a whole capture) of its size and its first and last megabyte. Raises OSError."""
    stat = os.stat(path)
    return _digest_once(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)
def _digest_once(path: str, size: int, mtime_ns: int) -> bytes:
    """Kept for the rows of one file."""
    with open(path, "rb") as file:
        if size <= WHOLE_BYTES:
            return hashlib.sha256(file.read()).digest()
        hashing = hashlib.sha256(f"{size}\0".encode() + file.read(1 << 20))
        file.seek(size - (1 << 20))
        return hashlib.sha256(hashing.digest() + file.read()).digest()


def fingerprint(scene: Scene) -> str:
    """What a scene shows: equal for copies under another name."""
    digest = hashlib.sha256()
    for array in (scene.depth_FHW, scene.masks_FHW):
        if array is not None:
            digest.update(array[:, ::7, ::7].tobytes())
    record = scene.record
    digest.update(record.model_dump_json(include={"objects", "tracks", "width_px", "height_px"}).encode())
    digest.update("".join(str(f.world_from_camera) for f in record.frames).encode())
    if record.kind == "tracks":
        digest.update("".join(frame.rgb for frame in record.frames).encode())
    return digest.hexdigest()
