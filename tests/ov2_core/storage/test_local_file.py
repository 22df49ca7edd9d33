"""Reads that the operating system refuses: the machine's fault, never the video's."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ov2_core.config import RunConfig, recipe
from ov2_core.errors import BadItemError
from ov2_core.make_sample import ProbeTask, TransientItemError, make_probe, make_sample
from ov2_core.media.container import open_video
from ov2_core.storage.files import Store
from ov2_core.storage.local_file import LocalFile, ReadFailedError, read_failed
from ov2_core.storage.retry import is_transient, retry_transient
from ov2_core.storage.source import source_identity
from schemas.shard import PlannedRow
from schemas.video import ManifestRow

FORMATS = [
    ("a.mp4", "libx264", None),
    ("a.mkv", "libx264", None),
    ("a.ts", "libx264", "mpegts"),
    ("a.flv", "libx264", None),
    ("a.webm", "libvpx-vp9", None),
    ("a.avi", "mpeg4", None),
    ("a.asf", "mpeg4", "asf"),
]


class Breaker:
    """Counts reads; from the given one on, each is from a file descriptor that cannot be read, as the kernel's answer says."""

    def __init__(self, write_only: int) -> None:
        self.write_only, self.count = write_only, 0
        self.broken: Callable[[int], bool] = lambda number: False

    def before_read(self, file: LocalFile) -> None:
        if self.broken(self.count):
            os.dup2(self.write_only, file.fileno())
        self.count += 1


@pytest.fixture
def breaker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Breaker]:
    write_only = os.open(tmp_path / "write-only", os.O_WRONLY | os.O_CREAT)
    breaker = Breaker(write_only)
    for name in ("read", "readinto"):
        original = getattr(LocalFile, name)

        def broken(self: LocalFile, argument: Any = -1, /, *, original: Any = original) -> Any:
            breaker.before_read(self)
            return original(self, argument)

        monkeypatch.setattr(LocalFile, name, broken)
    monkeypatch.setattr("ov2_core.make_sample.retry_transient", partial(retry_transient, sleep=lambda seconds: None))
    yield breaker
    os.close(write_only)


def write_noisy(path: Path, codec: str, container: str | None) -> Path:
    """60 frames of noise: some hundred kilobytes, so that a reader asks for them in several pieces."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=10, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 112, 84, "yuv420p", 1_000_000
        for _ in range(60):
            pixels = rng.integers(0, 255, (84, 112, 3), dtype=np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return path


def plan(path: Path, config: RunConfig, medium: str = "video") -> PlannedRow:
    row = ManifestRow.model_validate({medium: str(path)})
    planned = make_probe(ProbeTask(line=1, id="x", key="x", uri=str(path), row=row), config).planned
    assert planned is not None
    return planned


@pytest.mark.parametrize(("name", "codec", "container"), FORMATS)
def test_a_video_that_cannot_be_read_is_neither_damaged_nor_short(
    name: str, codec: str, container: str | None, tmp_path: Path, breaker: Breaker
) -> None:
    """A read fails once: the same bytes as ever. It fails for good: a transient error, and no sample."""
    config = recipe("evidence-8")
    planned = plan(write_noisy(tmp_path / name, codec, container), config)
    breaker.count = 0
    members = make_sample(planned, config).members
    assert members
    reads = breaker.count
    assert reads >= 6, "too few reads to show anything"
    for number in {0, 1, 2, reads // 3, reads // 2, reads - 2, reads - 1}:
        breaker.count, breaker.broken = 0, lambda count, number=number: count == number  # type: ignore[misc]
        assert make_sample(planned, config).members == members, f"read {number} of {reads}, once"
        breaker.count, breaker.broken = 0, lambda count, number=number: count >= number  # type: ignore[misc]
        with pytest.raises(TransientItemError, match="this machine cannot read it"):
            make_sample(planned, config)
    with pytest.raises(TransientItemError, match="is its disk or mount well"):
        plan(tmp_path / name, config)


def test_a_still_that_cannot_be_read_is_not_damaged(tmp_path: Path, breaker: Breaker) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    config = recipe("stills")
    for name in ("a.png", "a.jpg", "a.webp", "a.tiff"):
        Image.fromarray(pixels).save(tmp_path / name)
        planned = plan(tmp_path / name, config, "image")
        breaker.count = 0
        members = make_sample(planned, config).members
        assert members
        for number in range(breaker.count):
            breaker.count, breaker.broken = 0, lambda count, number=number: count == number  # type: ignore[misc]
            assert make_sample(planned, config).members == members, f"{name}, read {number}"
        breaker.broken = lambda count: True
        with pytest.raises(TransientItemError, match="this machine cannot read it"):
            make_sample(planned, config)
        breaker.broken = lambda count: False


@pytest.mark.parametrize("told", [None, BadItemError("no_decodable_frame", "nothing came")], ids=["nothing", "bad"])
def test_a_fault_that_nobody_heard_of_is_told_at_the_end(
    told: Exception | None, tmp_path: Path, breaker: Breaker
) -> None:
    path = write_noisy(tmp_path / "a.mp4", "libx264", None)

    def read_on() -> None:
        with open_video(str(path), stage="tokenize") as (container, stream):
            breaker.broken = lambda count: True
            with contextlib.suppress(ReadFailedError):
                list(container.demux(stream))
            if told is not None:
                raise told

    with pytest.raises(ReadFailedError):
        read_on()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.EMFILE, errno.ENODEV])
def test_faults_of_a_machine(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(number, os.strerror(number))
    assert is_transient(read_failed("a.mp4", error))
    (tmp_path / "a.mp4").write_bytes(b"x")

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise error

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(BadItemError) as caught:
        source_identity(str(tmp_path / "a.mp4"))
    assert caught.value.reason == "transient_error"


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR])
def test_answers_of_a_file_system(number: int) -> None:
    error = OSError(number, os.strerror(number))
    assert read_failed("a.mp4", error) is error
    assert not is_transient(error)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path / "none.mp4", "source_missing"),
        (lambda path: path, "not_media"),
        (lambda path: path / ("x" * 300), "source_missing"),
        (lambda path: "a\0b", "source_missing"),
    ],
    ids=["missing", "folder", "long name", "NUL"],
)
def test_paths_that_are_no_video(make: Callable[[Path], Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(BadItemError) as caught, open_video(make(tmp_path), stage="probe"):
        pass
    assert caught.value.reason == reason


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    with pytest.raises(BadItemError, match="0 bytes") as caught, open_video(tmp_path / "a.mp4", stage="probe"):
        pass
    assert caught.value.reason == "source_empty"


def test_a_store_that_cannot_be_read_is_a_transient_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.write_bytes("a", bytes(100_000))
    file = store.open_read("a")
    assert file.read(3) == bytes(3)
    write_only = os.open(tmp_path / "b", os.O_WRONLY | os.O_CREAT)
    os.dup2(write_only, file.fileno())
    with pytest.raises(ReadFailedError, match=r"a: this machine cannot read it \(EBADF"):
        file.read()
    os.close(write_only)
    file.close()

    def refuse(*arguments: Any, **named: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("builtins.open", refuse)
    for read in (lambda: store.read_bytes("a"), lambda: store.read_range("a", 0, 5)):
        with pytest.raises(ReadFailedError, match="EIO"):
            read()
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        store.read_bytes("none")
    with pytest.raises(FileNotFoundError):
        store.open_read("none")
