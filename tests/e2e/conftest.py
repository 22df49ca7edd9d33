"""What tests on an object store share."""

import pytest


@pytest.fixture(scope="module")
def bucket(request: pytest.FixtureRequest, s3_environment: dict[str, str]) -> str:
    """s3:// of an empty bucket of the test's module, on a server that this process's environment names."""
    import s3fs

    name = request.module.__name__.replace("_", "-")
    s3fs.S3FileSystem().call_s3("create_bucket", Bucket=name)
    return f"s3://{name}"
