"""Scene files that a machine cannot read for the moment: never the scene's fault. And places that a node does not see."""

import builtins
import errno
import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import av.error
import pytest
from spatial_scenes import (
    hand_scene,
    write_arkit,
    write_ca1m,
    write_davis,
    write_hypersim,
    write_plain,
    write_scannet,
    write_scannetpp,
)

from ov2_core.errors import BadItemError
from ov2_core.spatial.recipe import SpatialRecipe
from ov2_core.spatial.sources import open_source
from ov2_core.storage.files import Store
from ov2_core.storage.local_file import ReadFailedError, fault_behind
from pipelines import generate_spatial_qa as spatial
from pipelines.options import RunOptions
from pipelines.run_identity import Installation, WrongInstallationError

WRITERS = {
    "plain": write_plain,
    "arkitscenes": write_arkit,
    "ca-1m": write_ca1m,
    "scannet": write_scannet,
    "scannet++": write_scannetpp,
    "hypersim": write_hypersim,
    "davis": write_davis,
    "ca-1m packed": lambda root, scene: write_ca1m(root, scene, packed=True),
}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whoever opens [0] meets EIO and is counted by another entry."""
    found = [""]
    original = builtins.open

    def refuse(file: Any, *arguments: Any, **named: Any) -> Any:
        if found[0] and not isinstance(file, int) and os.fspath(file) == found[0]:
            found.append(found[0])
            raise OSError(errno.EIO, os.strerror(errno.EIO), found[0])
        return original(file, *arguments, **named)

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(io, "open", refuse)
    monkeypatch.setattr(tarfile, "bltn_open", refuse)
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_fails_is_not_the_scenes_fault(name: str, tmp_path: Path, failing: list[str]) -> None:
    source = open_source(str(WRITERS[name](tmp_path, hand_scene())))
    num_opened = 0
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        failing[:] = [str(path)]
        fault = None
        try:
            source.load(0)
        except ReadFailedError as error:
            fault = str(error)
            num_opened += 1
        except BadItemError as error:
            pytest.fail(f"{path}: {error.reason}: {error}")
        opened = len(failing) > 1
        assert (fault is not None) == opened, f"{path}: nobody was told that it cannot be read"
        assert fault is None or "this machine cannot read it (EIO" in fault
    assert num_opened
    failing[:] = [""]
    source.load(0)


def test_a_run_tries_a_scene_again_that_could_not_be_read(
    tmp_path: Path, failing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spatial, "collect_orphans", lambda store: None)
    scenes = write_plain(tmp_path, hand_scene())
    job_load = spatial.SpatialJob._load
    calls = []

    def load(self: Any, number: int) -> Any:
        calls.append(number)
        failing[:] = [str(next(scenes.rglob("scene.json"))) if len(calls) == 1 else ""]
        return job_load(self, number)

    monkeypatch.setattr(spatial.SpatialJob, "_load", load)
    summary = spatial.generate_spatial_qa(
        str(scenes), Store(tmp_path / "run"), SpatialRecipe(questions_per_type=2), RunOptions(workers=0, progress="off")
    )
    assert calls == [0, 0]
    assert summary.num_questions > 0


def test_faults_and_what_are_none() -> None:
    def raised(error: Exception, behind: Exception | None = None) -> ReadFailedError | None:
        try:
            raise error from behind
        except Exception as caught:
            return fault_behind(caught)

    assert raised(OSError(errno.EIO, "I/O error", "/mnt/a")) is not None
    assert raised(ValueError("no scene"), OSError(errno.ENOTCONN, "not connected")) is not None
    assert raised(ValueError("no scene"), FileNotFoundError(errno.ENOENT, "gone")) is None
    assert raised(OSError("image file is truncated")) is None
    assert raised(av.error.InvalidDataError(1094995529, "Invalid data")) is None
    assert raised(av.error.OSError(errno.EIO, "a demuxer's word for a broken file")) is None


def test_workers_must_see_the_scenes_and_where_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Installation] = []
    here = Installation.here

    def note(*arguments: Any, **named: Any) -> Installation:
        found.append(here(*arguments, **named))
        return found[-1]

    monkeypatch.setattr(spatial.Installation, "here", note)
    scenes = write_plain(tmp_path / "scenes", hand_scene())
    spatial.generate_spatial_qa(
        str(scenes),
        Store(tmp_path / "run"),
        SpatialRecipe(questions_per_type=2),
        RunOptions(workers=0, progress="off"),
        export_folder=str(tmp_path / "written"),
    )
    (installation,) = pickle.loads(pickle.dumps(found))
    installation.check()
    for folder in (scenes, tmp_path / "written"):
        away = folder.rename(tmp_path / "away")
        with pytest.raises(WrongInstallationError, match=f"no sight of {folder}.*a folder that is mounted on each"):
            installation.check()
        away.rename(folder)
    shutil.rmtree(tmp_path / "written")
    assert Installation.here(places=[str(tmp_path / "written")]).places == ()
