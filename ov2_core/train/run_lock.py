"""One training at a time in a folder, and none that outlives the launcher that began it.

A process that a kill has orphaned and the run that was resumed in its place would append to the same files: the first rank of a run
holds a lock that ends with its process, and ranks under torchrun die with torchrun.
"""

import ctypes
import errno
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

LOCK = "run.lock"
WAIT_SECONDS = 30.0
"""For one that was killed a moment ago and is on its way out."""


@contextmanager
def locked(run: Path, *, wait_seconds: float = WAIT_SECONDS) -> Iterator[None]:
    """Holds CKPT/run.lock, an advisory lock of the operating system: it is gone with the process, however that ends.

    Raises:
        ValueError: another process holds it for longer than wait_seconds; its host and number are named. Of a file system without
            locks a warning is logged.
    """
    run.mkdir(parents=True, exist_ok=True)
    file = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _take(file, run, wait_seconds)
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)
        yield
    finally:
        os.close(file)


def end_with_parent() -> None:
    """Linux kills this process when the one that started it dies, as nothing else would tell it (torchrun killed by SIGKILL)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _take(file: int, run: Path, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            holder = os.pread(file, 4096, 0).decode(errors="replace")
            raise ValueError(
                f"another process trains in {run} ({holder}); wait for it, end it, or name another folder"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            log.warning("%s lies on a file system without locks; do not start a second run in it", run)
            return
