"""Named points at which a test kills this process, as a power cut would.

`OV2_FAILPOINT=name[:count]` sends SIGKILL to the process that reaches the point for the count-th time (1 by default;
each process counts for itself). `OV2_FAILPOINT_MARKER=path` lets one process of a whole job die: the first to create
the file exclusively; its id is written there. With `OV2_FAILPOINT_HOLD` set, that process does not die but waits until
`path.go` exists: for somebody else to be killed meanwhile, or to come back as a late writer. With nothing set, a failpoint
costs one dictionary look-up. Nothing is flushed, closed or cleaned on the way out: that is the point.
"""

import os
import signal
import time
from collections import Counter

FAILPOINTS = (
    "before_tar",
    "mid_tar",
    "after_tar",
    "before_upload",
    "after_upload",
    "before_commit",
    "after_commit",
    "before_publish",
    "after_publish",
    "before_sidecar",
    "after_sidecar",
    "before_cleanup",
    "after_cleanup",
    "before_index",
    "mid_index",
    "after_index",
)
"""In the order in which one shard, then the index, passes them."""

ROW_FAILPOINTS = ("mid_probe", "before_plan", "mid_plan", "after_plan", "mid_decode")
"""Of rows and their plan, before any shard."""

_hits: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Die here if the environment says so. `name` is one of FAILPOINTS, or one that a caller of another layer adds."""
    wanted = os.environ.get("OV2_FAILPOINT")
    if not wanted:
        return
    wanted_name, _, count = wanted.partition(":")
    if name != wanted_name:
        return
    _hits[name] += 1
    if _hits[name] != int(count or 1):
        return
    marker = os.environ.get("OV2_FAILPOINT_MARKER")
    if marker:
        try:
            handle = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return
        os.write(handle, f"{os.getpid()}\n".encode())
        os.close(handle)
        if os.environ.get("OV2_FAILPOINT_HOLD"):
            while not os.path.exists(f"{marker}.go"):
                time.sleep(0.01)
            return
    os.kill(os.getpid(), signal.SIGKILL)
