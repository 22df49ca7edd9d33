"""Which errors of a storage are worth another try, and the loop that tries.

The list is closed: what is not on it (a missing key, a refused permission, a bad argument) rises at once. Errors are
recognised by their class's full name, so that botocore and aiohttp need not be installed or imported here.
"""

import errno
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

TRANSIENT_CLASSES = frozenset(
    {
        "builtins.ConnectionError",
        "builtins.TimeoutError",
        "asyncio.exceptions.TimeoutError",
        "http.client.IncompleteRead",
        "http.client.RemoteDisconnected",
        "urllib3.exceptions.IncompleteRead",
        "urllib3.exceptions.ProtocolError",
        "fsspec.exceptions.FSTimeoutError",
        "aiohttp.client_exceptions.ClientConnectionError",
        "aiohttp.client_exceptions.ClientPayloadError",
        "botocore.exceptions.CredentialRetrievalError",
        "botocore.exceptions.HTTPClientError",
        "botocore.exceptions.IncompleteReadError",
        "botocore.exceptions.MetadataRetrievalError",
        "botocore.exceptions.ResponseStreamingError",
        "botocore.parsers.ResponseParserError",
        "google.auth.exceptions.TransportError",
    }
)
TRANSIENT_ERRNOS = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,  # s3fs for 503, SlowDown, ServiceUnavailable and 409
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.EINTR,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EPIPE,
        getattr(errno, "EREMOTEIO", errno.EIO),  # s3fs for 500, InternalError
        errno.ESTALE,  # NFS: the file was replaced under the handle
        errno.ETIMEDOUT,
    }
)
TRANSIENT_CODES = frozenset(
    {
        "BadDigest",  # this and IncompleteBody: what we sent was harmed on the way
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
"""Error codes in the body of an S3 answer."""


NO_CREDENTIALS_CLASSES = frozenset(
    {
        "botocore.exceptions.NoCredentialsError",
        "botocore.exceptions.PartialCredentialsError",
        "google.auth.exceptions.DefaultCredentialsError",
    }
)
"""This machine has none, or its metadata server, which many ask at once, did not answer. Not worth another try at once."""


def has_no_credentials(error: BaseException) -> bool:
    """Whether a machine's lack of credentials is all that the error says."""
    return _is_of(error, NO_CREDENTIALS_CLASSES)


def is_transient(error: BaseException) -> bool:
    """Whether the same call may well succeed a moment later; the error's causes are looked at too."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if _is_transient_itself(current):
            return True
        current = current.__cause__
    return False


def _is_transient_itself(error: BaseException) -> bool:
    if _is_of(error, TRANSIENT_CLASSES):
        return True
    response = getattr(error, "response", None)  # botocore's ClientError
    if isinstance(response, dict):
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return code in TRANSIENT_CODES or _is_transient_status(status)
    if _is_transient_status(getattr(error, "status", None)):  # aiohttp's ClientResponseError
        return True
    return isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS


def _is_of(error: BaseException, names: frozenset[str]) -> bool:
    return any(f"{cls.__module__}.{cls.__qualname__}" in names for cls in type(error).__mro__)


def _is_transient_status(status: object) -> bool:
    return isinstance(status, int) and (status in (408, 429) or 500 <= status <= 599) and status != 501


def retry_transient(
    fn: Callable[[], T],
    *,
    attempts: int = 4,
    base_delay_seconds: float = 0.2,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call `fn` up to `attempts` times while it fails with a transient error.

    The n-th wait is drawn from [0.5, 1] x base_delay_seconds x 2^(n-1). The last error rises as it is. `fn` must be
    safe to repeat: a request that timed out may have taken effect.
    """
    if attempts < 1:
        raise ValueError(f"attempts must be >= 1, got {attempts}")
    for attempt in range(attempts):
        try:
            return fn()
        except Exception as error:
            if attempt == attempts - 1 or not is_transient(error):
                raise
            sleep(base_delay_seconds * 2**attempt * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def retry_within(fs: Any) -> None:
    """Has an fsspec file system try single requests again by the same list, those of an open stream too.

    s3fs alone needs it: it gives up at once where a 500 outlasts botocore's own attempts. The handler is the process's.
    """
    if type(fs).__module__.startswith("s3fs."):
        from s3fs.core import set_custom_error_handler

        set_custom_error_handler(is_transient)
