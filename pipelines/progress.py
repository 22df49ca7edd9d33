"""What a running pipeline shows: a live panel on a terminal, otherwise one log line now and then.

Enters: counts from the feeds. Leaves: text on stderr. `Counters` is plain, so that a test can read what a user would
see.
"""

import contextlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.live import Live
from rich.table import Table

log = logging.getLogger(__name__)
_LINE_SECONDS = 10.0


@dataclass(slots=True)
class Counters:
    """Counts of this invocation. An item is a video or a still."""

    stage: Literal["plan", "tokenize", "encode", "curriculum", "spatial", "split"]
    num_items: int | None = None
    """Items to do; None while unknown."""
    num_done: int = 0
    """Items that ended, whichever way."""
    num_made: int = 0
    num_filtered: int = 0
    num_images: int = 0
    num_tokens: int = 0
    num_shards: int | None = None
    num_shards_done: int = 0
    num_running: int = 0
    num_deaths: int = 0
    video_seconds: float = 0.0
    cpu_seconds: float = 0.0
    quarantined: Counter[str] = field(default_factory=Counter)
    began_seconds: float = field(default_factory=time.monotonic)

    def restart(self) -> None:
        """Starts the clock of the rates anew."""
        self.began_seconds = time.monotonic()

    def elapsed_seconds(self) -> float:
        """Since the counting began."""
        return max(1e-9, time.monotonic() - self.began_seconds)

    def eta_seconds(self) -> float | None:
        """Expected rest at the mean rate so far; None while that is unknown."""
        if self.num_items is None or self.num_done == 0:
            return None
        return (self.num_items - self.num_done) * self.elapsed_seconds() / self.num_done

    def rows(self) -> list[tuple[str, str]]:
        """(name, value) pairs for display."""
        elapsed = self.elapsed_seconds()
        eta = self.eta_seconds()
        total = "?" if self.num_items is None else f"{self.num_items}"
        rows = [
            ("items", f"{self.num_done}/{total}"),
            ("videos/s", f"{self.num_done / elapsed:.2f}"),
            ("video-hours/h", f"{self.video_seconds / elapsed:.2f}"),
        ]
        if self.stage == "encode":
            rows.append(("tokens/s", f"{self.num_tokens / elapsed:.0f}"))
        if self.stage not in ("plan", "split"):
            rows += [
                ("canvases", f"{self.num_images}"),
                ("shards", f"{self.num_shards_done}/{self.num_shards if self.num_shards is not None else '?'}"),
            ]
        rows += [
            ("running", f"{self.num_running}"),
            ("quarantined", _by_reason(self.quarantined)),
            ("elapsed", duration_text(elapsed)),
            ("ETA", "?" if eta is None else duration_text(eta)),
        ]
        if self.num_filtered:
            rows.append(("filtered", f"{self.num_filtered}"))
        if self.num_deaths:
            rows.append(("worker deaths", f"{self.num_deaths}"))
        return rows

    def line(self) -> str:
        """All rows on one line."""
        return f"{self.stage}: " + ", ".join(f"{name} {value}" for name, value in self.rows())


def duration_text(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. 1h02m, 3m07s, 12s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


@contextlib.contextmanager
def show(counters: Counters, mode: Literal["auto", "live", "plain", "off"]) -> Iterator[Callable[[], None]]:
    """Yields the function to call now and then; it redraws at a pace of its own."""
    console = Console(stderr=True)
    if mode == "off":
        yield lambda: None
        return
    if mode == "live" or (mode == "auto" and sys.stderr.isatty()):
        with Live(_table(counters), console=console, auto_refresh=False, transient=True) as live:
            pace = _Pace(0.25)
            yield lambda: live.update(_table(counters), refresh=True) if pace.due() else None
        return
    pace = _Pace(_LINE_SECONDS)
    yield lambda: log.info("%s", counters.line()) if pace.due() else None
    log.info("%s", counters.line())


class _Pace:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    def due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


def _table(counters: Counters) -> Table:
    table = Table(title=f"ov2 {counters.stage}", title_justify="left", show_header=False, box=None, padding=(0, 2))
    for name, value in counters.rows():
        table.add_row(name, value)
    return table


def _by_reason(quarantined: Counter[str]) -> str:
    if not quarantined:
        return "0"
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(quarantined.items()))
    return f"{quarantined.total()} ({reasons})"
