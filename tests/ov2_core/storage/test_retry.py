"""Which errors are tried again, and how often."""

import errno

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from ov2_core.storage.retry import is_transient, retry_transient


def client_error(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


def caused_by(cause: Exception) -> OSError:
    error = OSError(errno.EINVAL, "translated")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        BrokenPipeError(),
        TimeoutError(),
        OSError(errno.ESTALE, "stale handle"),
        OSError(errno.EBUSY, "503 as s3fs translates it"),
        ReadTimeoutError(endpoint_url="http://x"),
        client_error("SlowDown", 503),
        client_error("Unnamed", 500),
        client_error("TooManyRequests", 429),
        client_error("ConditionalRequestConflict", 409),
        caused_by(client_error("InternalError", 500)),
    ],
    ids=repr,
)
def test_transient_errors_are_recognised(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "missing"),
        PermissionError(errno.EACCES, "denied"),
        FileExistsError(),
        OSError(errno.EINVAL, "invalid"),
        OSError(errno.ENOSPC, "disk full"),
        ValueError("bad"),
        client_error("PreconditionFailed", 412),
        client_error("NoSuchKey", 404),
        client_error("AccessDenied", 403),
        client_error("NotImplemented", 501),
    ],
    ids=repr,
)
def test_other_errors_are_not_retried(error: Exception) -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise error

    assert not is_transient(error)
    with pytest.raises(type(error)):
        retry_transient(fail, sleep=lambda _: None)
    assert len(calls) == 1


@pytest.mark.parametrize(("failures", "attempts", "succeeds"), [(0, 1, True), (2, 3, True), (3, 3, False)])
def test_retry_counts_attempts_and_doubles_its_waits(failures: int, attempts: int, succeeds: bool) -> None:
    calls: list[int] = []
    waits: list[float] = []

    def flaky() -> str:
        calls.append(1)
        if len(calls) <= failures:
            raise ConnectionResetError("reset")
        return "done"

    if succeeds:
        assert retry_transient(flaky, attempts=attempts, base_delay_seconds=1.0, sleep=waits.append) == "done"
    else:
        with pytest.raises(ConnectionResetError):
            retry_transient(flaky, attempts=attempts, base_delay_seconds=1.0, sleep=waits.append)
    assert len(calls) == min(failures + 1, attempts)
    assert len(waits) == len(calls) - 1
    assert all(0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits))


def test_a_loop_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert not is_transient(first)
