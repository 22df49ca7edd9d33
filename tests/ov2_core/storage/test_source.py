"""Sources: what is opened, what identifies it, what is refused."""

import os
from pathlib import Path

import fsspec
import pytest

from ov2_core.errors import BadItemError
from ov2_core.storage.files import Store
from ov2_core.storage.source import open_source, opened_identity, source_identity


def test_local_source_is_its_path_and_its_identity_follows_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "ä b.mp4"
    path.write_bytes(b"one")
    assert open_source(str(path)) == str(path)
    assert open_source(path.as_uri()) == str(path)
    before = source_identity(str(path))
    assert before == source_identity(path.as_uri())
    assert before.size_bytes == 3
    os.utime(path, ns=(1, before.size_bytes))
    assert source_identity(str(path)) != before


def test_remote_source_is_a_seekable_stream() -> None:
    with fsspec.open("memory://sources/a.mp4", "wb") as file:
        file.write(b"0123456789")
    stream = open_source("memory://sources/a.mp4")
    assert not isinstance(stream, str)
    stream.seek(4)
    assert stream.read(3) == b"456"
    assert source_identity("memory://sources/a.mp4").size_bytes == 10


@pytest.mark.s3
def test_s3_identity_is_the_etag(s3_store: Store) -> None:
    s3_store.write_bytes("a.mp4", b"one")
    uri, options = s3_store.url("a.mp4"), s3_store.storage_options
    first = source_identity(uri, storage_options=options)
    s3_store.write_bytes("a.mp4", b"two")
    second = source_identity(uri, storage_options=options)
    assert first.size_bytes == second.size_bytes == 3
    assert first.stamp != second.stamp
    stream = open_source(uri, storage_options=options)
    assert not isinstance(stream, str)
    assert opened_identity(stream) == second
    assert stream.read() == b"two"
    with pytest.raises(BadItemError, match=r"missing\.mp4") as caught:
        source_identity(s3_store.url("missing.mp4"), storage_options=options)
    assert caught.value.reason == "source_missing"


def test_bad_sources_name_the_item_and_the_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    cases = {
        str(tmp_path / "empty.mp4"): "source_empty",
        str(tmp_path / "none.mp4"): "source_missing",
        str(tmp_path / "none.mp4" / "below.mp4"): "source_missing",
        str(tmp_path / "nul\0.mp4"): "source_missing",
        str(tmp_path): "refused_uri",
        str(tmp_path / "pipe.mp4"): "refused_uri",
        "/dev/zero": "refused_uri",
        "memory://sources/none.mp4": "source_missing",
        "simplecache::file:///etc/hostname": "refused_uri",
        "ssh://host/a.mp4": "refused_uri",
        "zip://a.mp4::/tmp/x.zip": "refused_uri",
    }
    for uri, reason in cases.items():
        with pytest.raises(BadItemError) as caught:
            source_identity(uri)
        assert caught.value.reason == reason, uri
        assert uri in str(caught.value)
        assert caught.value.stage == "probe"
    for uri in (str(tmp_path / "none.mp4"), "memory://sources/none.mp4", "ssh://host/a.mp4"):
        with pytest.raises(BadItemError):
            open_source(uri)


def test_a_machine_without_credentials_is_not_the_sources_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(BadItemError, match="no credentials") as caught:
        source_identity("s3://bucket/a.mp4")
    assert caught.value.reason == "transient_error"
    fsspec.filesystem("s3").clear_instance_cache()
