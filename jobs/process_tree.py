"""CPU seconds and memory of a process and all below it, Ray's among them, from Linux's /proc.

Enters: a process id. Leaves: samples over time. A process that ends keeps what it had spent when it was last seen, so what
lives shorter than the pause between samples is missed.
"""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Self

import numpy as np


def tree(root: int) -> list[int]:
    """The process and all below it."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parents[int(entry)] = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
    found, added = [root], {root}
    while added:
        added = {pid for pid, parent in parents.items() if parent in added}
        found += sorted(added)
    return found


def note_cpu_seconds(pid: int, cpu: dict[int, float]) -> None:
    """Writes down what a process has spent; nothing for one that is gone."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
        cpu[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def proportional_mib(pid: int) -> float:
    """Memory in which pages shared by n processes count 1/n; 0 for a process that is gone."""
    with contextlib.suppress(OSError, IndexError, StopIteration):
        lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return 0.0


class CpuWatch:
    """Samples the CPU seconds of this process and all below it while the context is open."""

    def __init__(self, *, pause_seconds: float = 0.25) -> None:
        self._pause_seconds = pause_seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._at: list[float] = []
        self._spent: list[float] = []

    def between(self, began: float, ended: float) -> float:
        """CPU seconds between two readings of time.monotonic, interpolated."""
        low, high = np.interp([began, ended], self._at, self._spent)
        return float(high - low)

    def _loop(self) -> None:
        cpu: dict[int, float] = {}
        while True:
            over = self._over.wait(self._pause_seconds)
            for pid in tree(os.getpid()):
                note_cpu_seconds(pid, cpu)
            self._at.append(time.monotonic())
            self._spent.append(sum(cpu.values()))
            if over:
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
