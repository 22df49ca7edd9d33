"""Shared fixtures: tiny clips, and one Ray for all tests that are marked `ray`, started with the first that asks for it."""

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import settings
from radosgw_server import ACCESS_KEY, ROOT_VARIABLE, SECRET_KEY, RadosgwServer, missing_programs

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
settings.register_profile("same", derandomize=True)
settings.register_profile("other")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
"""The same examples every time; HYPOTHESIS_PROFILE=other looks for new ones."""


def pytest_configure() -> None:
    """Started in the background (`nohup ... &`), a process and its children ignore Ctrl-C; tests send it to children."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Under pytest-xdist a file's tests stay on one worker, and all files that start Ray on one, the first to be given work."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    ray_files = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in ray_files)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in ray_files else str(item.path)))


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """An embedded Ray of 2 CPUs for the whole session."""
    from pipelines.runtime import ray_session

    with ray_session(workers=2):
        yield


def write_clip(path: Path, *, num_frames: int = 12, seed: int = 0, width_px: int = 112, height_px: int = 84) -> Path:
    """A small H.264 clip of a square that moves over noise of its seed; 10 frames a second."""
    rng = np.random.default_rng(seed)
    background = rng.integers(0, 255, (height_px, width_px, 3), dtype=np.uint8) // 2
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"threads": "1", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        for index in range(num_frames):
            image = background.copy()
            left = (index * 5 + seed * 7) % (width_px - 20)
            image[20:40, left : left + 20] = (255, 40 * (seed % 6), 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Path]:
    """`write_clip`, for tests that make their own."""
    return write_clip


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip_0.mp4 .. clip_5.mp4."""
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(6):
        write_clip(folder / f"clip_{seed}.mp4", num_frames=10 + 2 * seed, seed=seed)
    return folder


@pytest.fixture
def clip_manifest(clip_folder: Path, tmp_path: Path) -> Path:
    """Six good clips with ids v0 .. v5 and captions, and one missing file."""
    rows = [
        {"video": str(clip_folder / f"clip_{seed}.mp4"), "id": f"v{seed}", "caption": f"Square {seed}."}
        for seed in range(6)
    ]
    rows.insert(3, {"video": str(clip_folder / "nowhere.mp4"), "id": "gone"})
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


@pytest.fixture(scope="session")
def token_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished token run of canary clips; never written to. See feature_runs.make_token_run."""
    pytest.importorskip("torch")
    from feature_runs import make_token_run

    return make_token_run(tmp_path_factory.mktemp("token-run"))


@pytest.fixture(scope="session")
def train_stage(token_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage for `tiny`: text, codec, frames and a still of three sources; never written to. See train_stages.make_train_stage."""
    from train_stages import make_train_stage

    return make_train_stage(tmp_path_factory.mktemp("train-stage"), token_run)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model with random weights."""
    pytest.importorskip("torch")
    from feature_runs import make_model

    return make_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[str]:
    """URL of a moto server that lives for the session."""
    pytest.importorskip("moto")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


@pytest.fixture(scope="session")
def radosgw_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a radosgw that lives for the session: an S3 server that shares no line with moto."""
    missing = missing_programs()
    if missing:
        pytest.skip(
            f"no {', '.join(missing)} here: apt-get install radosgw ceph-mon ceph-osd, or {ROOT_VARIABLE}=FOLDER of unpacked debs"
        )
    with RadosgwServer(tmp_path_factory.mktemp("radosgw")) as server:
        yield server.endpoint


@pytest.fixture(scope="session", params=["moto", pytest.param("radosgw", marks=pytest.mark.slow)])
def s3_endpoint(request: pytest.FixtureRequest) -> str:
    """URL of an S3 server; each test that asks for it runs on both."""
    endpoint: str = request.getfixturevalue(f"{request.param}_endpoint")
    return endpoint


@pytest.fixture(scope="module")
def s3_environment(s3_endpoint: str) -> Iterator[dict[str, str]]:
    """Variables by which s3fs, here and in child processes, reaches the server; set in this process while a module runs."""
    import s3fs

    environment = {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environment.items():
            patch.setenv(variable, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield environment
    s3fs.S3FileSystem.clear_instance_cache()
