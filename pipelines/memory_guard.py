"""Stops the largest worker of a node that runs short of memory, before the kernel or Ray stops any.

Enters: looks at /proc and the memory cgroup. Leaves: a MemoryError in the worker that holds most, which charges the one task
that it runs; its neighbours see nothing of it. A limit per worker would be simpler, but would condemn a large video that has
the node to itself on its last, quiet try. Ray's own monitor acts later (at 95 % of the node) and may choose a neighbour.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LOOK_SECONDS = 0.2
"""Between two looks of a worker at its node's memory: a look takes some 0.1 ms of CPU."""
RESERVE_SHARE = 0.1
"""Of the node's memory; below it the largest worker is stopped."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """Bytes of the node, or of the container where that has less."""

    total: int
    available: int


def node_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> NodeMemory | None:
    """None where the system does not tell. Page cache that can be dropped counts as available."""
    try:
        fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        total, available = (int(fields[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return None
    node = NodeMemory(total, available)
    for folder, limit, used, inactive in (
        (cgroup, "memory.max", "memory.current", "inactive_file"),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            allowed = int((folder / limit).read_text())  # "max" is a ValueError: no limit
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            free = allowed - int((folder / used).read_text()) + int(stat.get(inactive, 0))
        except (OSError, ValueError):
            continue
        if allowed < total:
            node = NodeMemory(allowed, max(0, min(free, available)))
    return node


def own_bytes(pid: int | str = "self") -> int:
    """Resident memory of a process that it shares with no other (Ray's object store is shared); 0 for one that is gone."""
    try:
        _, resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[:3]
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE_BYTES


def sibling_bytes() -> list[int]:
    """own_bytes of the other children of this process's parent: on Ray, the node's other workers."""
    found, parent = [], str(os.getppid())
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                stat = Path(f"/proc/{entry.name}/stat").read_text()
            except OSError:
                continue
            if stat.rpartition(")")[2].split()[1] == parent:  # after "pid (name)": state, parent
                found.append(own_bytes(entry.name))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryGuard:
    """Asked now and then by a worker about itself."""

    reserve_share: float = RESERVE_SHARE
    look: Callable[[], NodeMemory | None] = node_memory
    own: Callable[[], int] = own_bytes
    siblings: Callable[[], list[int]] = sibling_bytes

    def check(self) -> None:
        """Raises MemoryError if the node is short of memory and no other worker holds more than this one."""
        node = self.look()
        if node is None or node.available >= self.reserve_share * node.total:
            return
        own = self.own()
        if own < max(self.siblings(), default=0) or own < self.reserve_share * node.total / 4:
            return  # what is too small to help is left alone: somebody else fills the node
        raise MemoryError(
            f"the worker holds {own >> 20} MiB, more than any other on its node, of which {node.available >> 20} of "
            f"{node.total >> 20} MiB are left"
        )
