"""Stores of each kind, and an S3 server in this process."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from ov2_core.storage.files import Store

_BUCKETS = itertools.count()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of a moto server that lives for the session."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def s3_store(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty bucket of its own for each test."""
    import s3fs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    options = {"endpoint_url": s3_endpoint, "client_kwargs": {"region_name": "us-east-1"}}
    bucket = f"bucket-{next(_BUCKETS)}"
    s3fs.S3FileSystem(**options).call_s3("create_bucket", Bucket=bucket)
    return Store(f"s3://{bucket}/run", options)


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """The same contract on each kind of storage."""
    if request.param == "local":
        yield Store(tmp_path / "run")
    elif request.param == "memory":
        store = Store(f"memory://{tmp_path.name}")
        yield store
        store.fs.store.clear()
    else:
        yield request.getfixturevalue("s3_store")
