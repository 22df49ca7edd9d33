"""Signs of life: what commands at work on a run, or that were, say of themselves (RUN/invocations/<began>-<hex>.json).

Enters: a Store. Leaves: records by age. Written by pipelines/observe.py; read by `ov2 status`, and by `ov2 gc` as leases.
"""

import contextlib

from ov2_core.storage.files import Store
from schemas.run import InvocationRecord

INVOCATIONS_DIR = "invocations"


def invocation_rel(name: str) -> str:
    """The file of one invocation."""
    return f"{INVOCATIONS_DIR}/{name}.json"


def load_invocations(store: Store, *, last: int = 50) -> list[InvocationRecord]:
    """The youngest `last` by their begin, oldest first. Names begin with its milliseconds, so one listing tells which."""
    names = [name for name in store.list(INVOCATIONS_DIR) if name.endswith(".json")][-last:]
    found = []
    for name in names:
        with contextlib.suppress(FileNotFoundError, ValueError):
            data = store.read_bytes(f"{INVOCATIONS_DIR}/{name}")
            found.append(InvocationRecord.model_validate_json(data))
    return sorted(found, key=lambda record: record.began_unix_seconds)
