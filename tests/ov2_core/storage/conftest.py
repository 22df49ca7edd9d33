"""Stores of each kind, S3 on a server in this process or on a radosgw."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_stores import ATOMIC_STORES, make_s3_store

from ov2_core.storage.files import Store


@pytest.fixture
def s3_store(s3_endpoint: str) -> Store:
    """An empty bucket of its own for each test, on each server."""
    return make_s3_store(s3_endpoint)


@pytest.fixture(params=[*ATOMIC_STORES, "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """The same contract on each kind of storage."""
    if request.param == "local":
        yield Store(tmp_path / "run")
    elif request.param == "memory":
        store = Store(f"memory://{tmp_path.name}")
        yield store
        store.fs.store.clear()
    else:
        yield make_s3_store(request.getfixturevalue(f"{request.param}_endpoint"))
