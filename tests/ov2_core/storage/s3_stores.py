"""Stores on the S3 servers that tests start, and the kinds of storage on which exclusive creation is atomic."""

import itertools
from typing import Any

import pytest
from radosgw_server import ACCESS_KEY, SECRET_KEY

from ov2_core.storage.files import Store

ATOMIC_STORES = [
    "local",
    pytest.param("moto", marks=pytest.mark.s3),
    pytest.param("radosgw", marks=[pytest.mark.s3, pytest.mark.slow]),
]
"""Parameters of the fixture `store`."""
_BUCKETS = itertools.count()


def s3_options(endpoint: str) -> dict[str, Any]:
    """What s3fs needs to reach a server of ours."""
    return {
        "endpoint_url": endpoint,
        "key": ACCESS_KEY,
        "secret": SECRET_KEY,
        "client_kwargs": {"region_name": "us-east-1"},
    }


def make_s3_store(endpoint: str) -> Store:
    """A run in an empty bucket of its own."""
    import s3fs

    options, bucket = s3_options(endpoint), f"bucket-{next(_BUCKETS)}"
    s3fs.S3FileSystem(**options).call_s3("create_bucket", Bucket=bucket)
    return Store(f"s3://{bucket}/run", options)
