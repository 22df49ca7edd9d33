"""A store of keys for one generation of torchrun's ranks.

torchrun keeps one store for all generations and, since torch 2.5, nothing tells their keys apart: ranks that it has restarted after
a death read addresses of the dead and wait for them until a timeout of half an hour (pytorch issue 135712; the count of restarts is
each node's own, so it cannot tell generations apart either). Here the first rank of each generation opens a store of its own and
leaves its port in torchrun's; the others take that port until they find a store behind it that knows the same nonce.
"""

import os
import secrets
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import TCPStore
from torch.distributed import DistError

PLACE = "ov2/store"
_NONCE = "nonce"
_TRY_SECONDS = 2.0


def generation_store(timeout: timedelta, environment: Mapping[str, str] | None = None) -> Any:
    """The store of this generation; all ranks call it.

    Args:
        environment: torchrun's variables; by default this process's.

    Raises:
        TimeoutError: the first rank did not come.
    """
    env = os.environ if environment is None else environment
    host, size = env["MASTER_ADDR"], int(env["WORLD_SIZE"])
    launcher = TCPStore(host, int(env["MASTER_PORT"]), is_master=False, timeout=timeout)
    if int(env["RANK"]) == 0:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        nonce = secrets.token_hex(16)
        store.set(_NONCE, nonce)
        launcher.set(PLACE, f"{store.port} {nonce}")
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        port, _, nonce = launcher.get(PLACE).decode().partition(" ")
        found = _connect(host, int(port), nonce, timeout)
        if found is not None:
            return found
        time.sleep(0.1)
    raise TimeoutError(f"the first of {size} ranks has opened no store on {host} in {timeout}")


def _connect(host: str, port: int, nonce: str, timeout: timedelta) -> Any:
    """The store behind a port, or None where another one or nothing is there."""
    try:
        socket.create_connection(
            (host, port), timeout=_TRY_SECONDS
        ).close()  # says no at once, and without c10d's stack traces
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=_TRY_SECONDS))
        if store.get(_NONCE).decode() != nonce:
            return None
    except (OSError, DistError, RuntimeError):  # the store of a generation that is dead
        return None
    store.set_timeout(timeout)
    return store
